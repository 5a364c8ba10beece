"""PyTorch's and PEFT's logits, as a program of its own: it runs where those are installed and imports nothing of ours.

`python peft_reference.py BASE ADAPTER TOKENS.npy LOGITS.npy [NAME]` prints the versions it used. Give it only what was
checked before: torch opens the files.
"""

import os
import sys


def main() -> None:
    """Evaluate the adapter on its base in float32, on the CPU, offline."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", CUDA_VISIBLE_DEVICES="")
    import numpy as np
    import peft  # type: ignore[import-not-found]
    import torch  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM

    base, adapter, tokens, out = sys.argv[1:5]
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    model = peft.PeftModel.from_pretrained(model, adapter, local_files_only=True).eval()
    with torch.no_grad():
        np.save(out, model(torch.tensor(np.load(tokens))[None]).logits[0].numpy())
    sys.stdout.write(f"PEFT {peft.__version__}, torch {torch.__version__}\n")


if __name__ == "__main__":
    main()
