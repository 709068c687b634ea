"""A Hugging Face folder's tokenizer on `tokenizers` and jinja2: the ids and texts of transformers, loaded in a moment.

Read: tokenizer.json (the pieces), tokenizer_config.json (named special tokens), the chat template from
chat_template.jinja, chat_template.json or tokenizer_config.json, and the stop ids from generation_config.json,
config.json or tokenizer_config.json, the first of each that says something.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from tokenizers import AddedToken

from jax_rl.errors import UserError
from jax_rl.tokens.chat_template import ChatTemplate

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerError(UserError):
    """A tokenizer folder that cannot be used, or a chat that its template refuses."""


class Tokenizer:
    """Text to ids and back, the chat template, and the ids that mean something special.

    bos_id                None where the tokenizer names no BOS (Qwen)
    pad_id                fills rows up; carries no meaning, so where none is named it is the first stop id
    eos_ids               every id that ends a completion
    special_ids           ids that decode to nothing
    vocab_size            one past the largest id that has a piece; a model's embedding may have more rows
    has_chat_template     whether `apply_chat_template` can be called
    takes_language_codes  whether that template writes the instruction itself (see ChatTemplate)
    backend               the `tokenizers.Tokenizer` itself
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        named_tokens: dict[str, str],
        eos_ids: tuple[int, ...],
        chat_template: ChatTemplate | None,
        folder: Path,
    ) -> None:
        self.backend = backend
        self.eos_ids = eos_ids
        self.folder = folder
        self._named_tokens = named_tokens
        self._chat_template = chat_template
        named_ids = {name: backend.token_to_id(token) for name, token in named_tokens.items()}
        self.bos_id: int | None = named_ids.get("bos_token")
        pad_id = named_ids.get("pad_token")
        self.pad_id: int = eos_ids[0] if pad_id is None else pad_id
        # a stop token is never part of a translation, even where tokenizer.json forgot to mark it as special
        flagged = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.special_ids = frozenset(flagged | set(eos_ids) | {i for i in named_ids.values() if i is not None})
        self.has_chat_template = chat_template is not None
        self.takes_language_codes = chat_template is not None and chat_template.takes_language_codes
        self.vocab_size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values())

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Raises TokenizerError where the folder has no usable tokenizer."""
        folder = Path(folder)
        backend = _load_backend(folder)
        config = _read_json(folder / "tokenizer_config.json")
        named = _named_tokens(folder, config)
        named = {name: token for name, token in named.items() if backend.token_to_id(token) is not None}
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        # named in the config alone: marked as special here, so that a template's "<bos>" becomes its one id
        unmarked = [token for token in dict.fromkeys(named.values()) if token not in known]
        backend.add_special_tokens([AddedToken(token, special=True) for token in unmarked])
        return cls(backend, named, _stop_ids(folder, backend, named), _load_chat_template(folder, config), folder)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """With `add_special_tokens`, what the tokenizer puts around plain text (its BOS) is added.

        A rendered chat holds its special tokens already: encode it without.
        """
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out, not stripped; ids without a piece write nothing."""
        plain = [int(i) for i in ids if int(i) not in self.special_ids]
        return self.backend.decode(plain, skip_special_tokens=True)

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], **kwargs: Any) -> str:
        """The conversation as text, up to where the assistant begins. `kwargs` are the template's own options.

        Raises TokenizerError where there is no template or it refuses the conversation.
        """
        if self._chat_template is None:
            raise TokenizerError(f"{self.folder}: the tokenizer has no chat template")
        try:
            return self._chat_template.render(messages, self._named_tokens, **kwargs)
        except (jinja2.TemplateError, TypeError) as error:
            raise TokenizerError(f"{self.folder}: the chat template refuses the conversation: {error}") from error


def _load_backend(folder: Path) -> tokenizers.Tokenizer:
    if not folder.is_dir():
        raise TokenizerError(f"{folder}: there is no such folder to read a tokenizer from")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{folder}: there is no tokenizer.json; write it once with transformers: "
            f"AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise TokenizerError(f"{path}: not a tokenizer of the `tokenizers` library: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _named_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Role -> token; older folders name them in special_tokens_map.json."""
    older = {} if "added_tokens_decoder" in config else _read_json(folder / "special_tokens_map.json")
    named = {}
    for name in NAMED_TOKENS:
        token = older.get(name) or config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and content:
            named[name] = content
    return named


def _stop_ids(folder: Path, backend: tokenizers.Tokenizer, named: dict[str, str]) -> tuple[int, ...]:
    config = _read_json(folder / "config.json")
    nested = config.get("text_config")
    places = {
        "generation_config.json": _read_json(folder / "generation_config.json"),
        "config.json": config,
        "config.json, text_config": nested if isinstance(nested, dict) else {},
    }
    for place, values in places.items():
        value = values.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(i) is not int or i < 0 for i in ids):
            raise TokenizerError(f"{folder}, {place}: eos_token_id is {value!r}; it must be an id or a list of ids")
        if ids:
            return tuple(dict.fromkeys(ids))
    eos_id = backend.token_to_id(named.get("eos_token", ""))
    if eos_id is not None:
        return (eos_id,)
    raise TokenizerError(
        f"{folder}: nothing says which token ends a completion; "
        f"give eos_token_id in generation_config.json or eos_token in tokenizer_config.json"
    )


def _load_chat_template(folder: Path, config: dict[str, Any]) -> ChatTemplate | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        source: Any = path.read_text(encoding="utf-8")
    else:
        path = folder / "chat_template.json"
        source = _read_json(path).get("chat_template")
        if source is None:
            path = folder / "tokenizer_config.json"
            source = config.get("chat_template")
    if isinstance(source, list):  # several by name, e.g. one for tool use
        named = {entry["name"]: entry["template"] for entry in source}
        if "default" not in named:
            raise TokenizerError(f"{path}: none of its chat templates is named 'default'; there are {sorted(named)}")
        source = named["default"]
    if source is None:
        return None
    try:
        return ChatTemplate(source)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"{path}: the chat template is broken at its line {error.lineno}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    """An empty dict where the file is absent."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: must hold one JSON object, not a {type(value).__name__}")
    return value
