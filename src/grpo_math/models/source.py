"""Which model is meant, and what of it may be loaded: no pickled weights and no code of its own unless allowed."""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_math.data.sources import hub_answers
from grpo_math.errors import UserError, one_line
from grpo_math.runs.checkpoints import whole

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PretrainedConfig

WEIGHTS = re.compile(r"(.*\.safetensors|(pytorch|adapter)_model.*\.bin|(adapter_)?config\.json)")
FORMATS = (  # names of weights: as safetensors, and pickled
    (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")),
    (("adapter_model.safetensors",), ("adapter_model.bin",)),
)
LOADED = re.compile(
    r"(adapter_)?model.*\.safetensors(\.index\.json)?|(adapter_|generation_)?config\.json|tokenizer.*|vocab.*"
)
PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
POINTER = b"version https://git-lfs"  # begins the small text that stands for a file which git did not fetch


def load_arguments(keys: dict) -> dict:
    """What every `from_pretrained` of a model is given, by the TRL keys of a recipe.

    With `use_safetensors: false` in model_init_kwargs, pickled weights are loaded where there are no others.
    """
    pickles = (keys.get("model_init_kwargs") or {}).get("use_safetensors") is False
    return {"trust_remote_code": keys.get("trust_remote_code", False), "use_safetensors": None if pickles else True}


def copy_processor(model: Any, folder: Path) -> None:
    """Put the settings of a vision-language model's processor, which vLLM reads for text, too, next to a copy of its
    weights: the files of the checkpoint that it was loaded from."""
    from transformers.utils import cached_file

    config = model.config
    if config.get_text_config() is config:
        return
    for name in PROCESSOR:
        with suppress(OSError):  # few models have all three
            source = cached_file(config.name_or_path, name, revision=getattr(config, "_commit_hash", None))
            shutil.copyfile(str(source), folder / name)


def context_of(config: "PretrainedConfig") -> int:
    """How many tokens a model of this config has room for; sys.maxsize where it names no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


@dataclass(frozen=True)
class ModelSource:
    """A model or a LoRA adapter: a local folder or an id on the Hub.

    Code of the model's own is refused unless `trust_remote_code`, pickled weights unless `use_safetensors` is None.
    `base_of` names the adapter whose base model this is.
    """

    name: str
    revision: str = "main"
    trust_remote_code: bool = False
    use_safetensors: bool | None = True
    base_of: str | None = None

    def __post_init__(self) -> None:
        if not os.path.isdir(self.name):
            hub_answers()  # before transformers asks it for one file after the other

    @classmethod
    def of(cls, keys: dict) -> "ModelSource":
        """The model that a recipe's TRL keys name."""
        return cls(keys["model_name_or_path"], keys.get("model_revision") or "main", **load_arguments(keys))

    @property
    def arguments(self) -> dict:
        """Those of a model's `from_pretrained`."""
        return {
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "use_safetensors": self.use_safetensors,
        }

    @cached_property
    def adapter(self) -> "LoraConfig | None":
        """The settings of an adapter; None for a whole model."""
        from peft import LoraConfig, PeftConfig
        from transformers.utils import find_adapter_config_file

        try:
            if find_adapter_config_file(self.name, revision=self.revision) is None:
                return None
        except OSError:
            return None
        fix = "train it again, or name another"
        with one_line(f"{self.name}: not a readable LoRA adapter", fix, (Exception,)):
            config = PeftConfig.from_pretrained(self.name, revision=self.revision)
            if not isinstance(config, LoraConfig):
                raise TypeError(f"its type is {config.peft_type}")
            if not config.base_model_name_or_path:
                raise ValueError("adapter_config.json names no base_model_name_or_path")
        return config

    @cached_property
    def base(self) -> "ModelSource":
        """The base model of an adapter; a whole model is its own."""
        if (adapter := self.adapter) is None:
            return self
        name, revision = str(adapter.base_model_name_or_path), adapter.revision or "main"
        return replace(self, name=name, revision=revision, base_of=self.name)

    @property
    def tokenizer(self) -> "ModelSource":
        """Where the tokenizer is: with the model, or with the base model of an adapter that brings none."""
        return self.base if os.path.isdir(self.name) and not Path(self.name, "tokenizer_config.json").exists() else self

    def check(self) -> None:
        """Raise UserError for a model, adapter or base model that brings code or has only pickled weights, where that
        is not allowed, and for files that are not whole. Missing files are reported when they are loaded."""
        from transformers import CONFIG_MAPPING, PretrainedConfig
        from transformers.utils import has_file

        odd = one_line(f"{self.name}/config.json: not that of a model", kinds=(AttributeError, TypeError))
        with suppress(OSError), odd:
            config, _ = PretrainedConfig.get_config_dict(self.name, revision=self.revision)
            if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING and not self.trust_remote_code:
                raise self.needs_code()
        for safe, pickled in FORMATS if self.use_safetensors else ():
            with suppress(OSError, ValueError):
                found = [file for file in pickled if has_file(self.name, file, revision=self.revision)]
                if found and not any(has_file(self.name, file, revision=self.revision) for file in safe):
                    raise UserError(
                        f"{self.name} has only pickled weights ({found[0]}), which can run code: convert them to "
                        "safetensors, or allow them with model_init_kwargs: {use_safetensors: false}"
                    )
        for file in sorted(file for file in Path(self.name).glob("*") if LOADED.fullmatch(file.name)):
            with suppress(OSError), file.open("rb") as content:
                if content.read(len(POINTER)) == POINTER:
                    raise UserError(f"{file}: a git-lfs pointer, not the file itself: run `git lfs pull` in its folder")
            if not whole(file) and not file.name.startswith("adapter_"):  # which peft reads and refuses
                raise UserError(f"{file}: damaged or incomplete: copy or download it again")
        self.check_generation_config()
        if self.base is not self:
            self.base.check()

    def check_generation_config(self) -> None:
        """Raise UserError for one that transformers refuses when it saves a model, after the training."""
        from transformers import GenerationConfig

        file = Path(self.name, "generation_config.json")
        with one_line(f"{file}: transformers saves no model with it", "correct it, or delete it"):
            try:
                found = GenerationConfig.from_pretrained(self.name, revision=self.revision)
            except OSError:
                if file.exists():
                    raise
            else:
                found.validate(strict=True)

    def on_this_machine(self) -> bool:
        """Whether there is a folder, or weights in the Hub's cache."""
        from transformers.utils import has_file

        files = (file for names in FORMATS[0] for file in names)
        return os.path.isdir(self.name) or any(
            has_file(self.name, file, revision=self.revision, local_files_only=True) for file in files
        )

    def needs_code(self) -> UserError:
        return UserError(
            f"{self.name} has custom Python code, which would run as you: read it, and then allow it with "
            "trust_remote_code: true"
        )

    @contextmanager
    def loading(self, what: str = "") -> Iterator[None]:
        """Turn what transformers raises for a missing, damaged or forbidden model into one line."""
        what = what or f"model_name_or_path: no model at {self.name!r}"
        fix = "give a folder with config.json, weights and a tokenizer, or a Hub id that can be reached"
        if list(Path(self.name).glob("checkpoint-*")):
            fix = "a run without a final model: name one of its checkpoints"
        if self.base_of:
            what = f"{self.base_of} is an adapter of {self.name}, which cannot be loaded"
            fix = f"put that model there, or correct {self.base_of}/adapter_config.json"
        with one_line(what, fix, (Exception,)):
            if self.name.count("/") > 1 and not os.path.isdir(self.name):  # no id on the Hub either
                raise OSError("no such folder")
            try:
                yield
            except ValueError as error:
                if "trust_remote_code" not in str(error):
                    raise
                raise self.needs_code() from error

    def config(self) -> "PretrainedConfig":
        """The config of the model, or of an adapter's base model."""
        from transformers import AutoConfig

        self.check()
        base = self.base
        with base.loading():
            return AutoConfig.from_pretrained(
                base.name, revision=base.revision, trust_remote_code=base.trust_remote_code
            )

    def dtype(self, wanted: str) -> str:
        """`wanted`, or for `auto` that of the checkpoint."""
        return str(self.config().dtype or "float32").removeprefix("torch.") if wanted == "auto" else wanted

    def fingerprint(self) -> str:
        """16 hex digits that change with any weight, an adapter's base model's too: of the files, else the Hub's
        commit."""
        with self.loading():
            if not os.path.isdir(self.name):
                from transformers.utils.hub import cached_file, extract_commit_hash

                config = "adapter_config.json" if self.adapter else "config.json"
                return str(extract_commit_hash(cached_file(self.name, config, revision=self.revision), None))[:16]
            files = [file for file in sorted(Path(self.name).iterdir()) if WEIGHTS.fullmatch(file.name)]
            if not any(file.suffix in (".safetensors", ".bin") for file in files):
                raise FileNotFoundError("it has no weights")
        digest = hashlib.sha256(self.base.fingerprint().encode() if self.adapter else b"")
        for file in files:
            with file.open("rb") as content:
                digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()[:16]
