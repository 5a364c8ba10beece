"""A script of its own: llama.cpp's server on one GGUF, on this machine only, until standard input ends.

Started as `python -I llama_process.py FILE CONTEXT THREADS`; the API key comes as the first line of standard input.
It prints one line, the server's address, and imports nothing of afs_mlx: a crash in here is no crash of the command.
"""

import os
import resource
import sys


def main() -> None:
    """Serve until the parent closes our input, which it also does by dying."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would be as large as the model
    answers = os.dup(1)
    os.dup2(2, 1)  # what the library prints must not stand before the address
    import xllamacpp

    path, context, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.api_keys = [sys.stdin.readline().strip()]
    parameters.n_ctx, parameters.n_parallel = context, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.cpuparams.poll = parameters.cpuparams_batch.poll = 0
    # Its cache is f16 otherwise, and hides how exact the file is.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # On a Mac, too: its GPU multiplies float32 in half precision.
    parameters.n_gpu_layers, parameters.no_op_offload, parameters.no_kv_offload = 0, True, True
    parameters.warmup, parameters.use_jinja, parameters.verbosity = False, True, 1
    parameters.prefill_assistant = False  # an answer at the end is rendered as the template says
    parameters.cache_ram_mib = 0
    server = xllamacpp.Server(parameters)
    os.write(answers, f"{server.listening_address}\n".encode())
    sys.stdin.read()
    os._exit(0)  # its own way out waits for threads


if __name__ == "__main__":
    main()
