"""What a model of ours says to Ollama, beside its weights: decided here once, for the Modelfile and the REST call."""

from collections.abc import Mapping, Sequence

from afs_mlx.clients.ollama.modelfile import render_modelfile
from afs_mlx.clients.ollama.templates import TEMPLATES
from afs_mlx.core.config import StrictModel
from afs_mlx.core.errors import AfsError, UsageError, closest
from afs_mlx.schema.expert import Shot
from afs_mlx.schema.sampling import Sampling

# Ollama's own defaults are top_k 40 and, in many versions, repeat_penalty 1.1; mlx-lm knows neither unless asked.
PLAIN_SAMPLING = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}


class ModelfileContent(StrictModel):
    """Everything that a Modelfile states but FROM. `messages` are (role, text) before the conversation."""

    template: str
    system: str = ""
    stop: tuple[str, ...] = ()
    parameters: Mapping[str, float | int] = {}
    messages: tuple[tuple[str, str], ...] = ()
    license_text: str = ""


def content_for(
    *,
    chat_format: str,
    stop_texts: Sequence[str],
    system: str,
    sampling: Sampling,
    shots: Sequence[Shot] = (),
    license_text: str = "",
    default_system: str = "",
) -> ModelfileContent:
    """What `afs-mlx chat` does with these, in Ollama's words.

    `chat_format` and `stop_texts` are the model folder's own (`engine.bases.chat_format`); the sampling's stop texts
    come after them. `default_system` is the text that the folder's Jinja template makes up where there is no system
    message; our Go templates make up none. Raises UsageError for a chat format without a Go template.
    """
    if chat_format not in TEMPLATES:
        raise UsageError(
            f"there is no Ollama template for the chat format {chat_format!r}", "", closest(chat_format, [*TEMPLATES])
        )
    return ModelfileContent(
        template=TEMPLATES[chat_format],
        system=system or default_system,
        stop=tuple(dict.fromkeys((*stop_texts, *sampling.stop))),
        parameters={
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "num_ctx": sampling.context_tokens,
            "num_predict": sampling.max_tokens,
            **PLAIN_SAMPLING,
        },
        messages=tuple(turn for shot in shots for turn in (("user", shot.user), ("assistant", shot.assistant))),
        license_text=license_text,
    )


def modelfile_text(content: ModelfileContent, gguf: str) -> str:
    """The Modelfile of these values, FROM `gguf` (a path relative to the Modelfile); raises as `render_modelfile`."""
    return render_modelfile(
        gguf,
        template=content.template,
        system=content.system,
        stop=content.stop,
        parameters=content.parameters,
        messages=content.messages,
        license_text=content.license_text,
    )


def modelfile_or_note(content: ModelfileContent, gguf: str) -> tuple[str, str]:
    """The Modelfile and "", or, for values that the format cannot hold, a file of comments alone and the reason.

    `ollama create` refuses a file without FROM, so that nobody makes half a model of it; the REST call takes any text.
    """
    try:
        return modelfile_text(content, gguf), ""
    except AfsError as error:
        if isinstance(error, UsageError):
            raise
        lines = ["This is no Modelfile. The format cannot hold what this model says:", *error.what.splitlines()[1:]]
        lines += ["`afs-mlx export ollama` registers it all the same: it hands the texts to the server as they are."]
        return "".join(f"# {line.strip()}\n" for line in lines), error.what
