"""A finished model directory to a repository on Hugging Face's hub, through its own library.

The token comes from where that library keeps it (``hf auth login``, ``HF_TOKEN``), and the hub's
address from ``HF_ENDPOINT``.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from wuneng.errors import InputError, RunError, reason, shortened

__all__ = ["check_repository", "upload"]

#: Weights that an earlier upload left would be loaded in place of the new ones.
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json", "pytorch_model*"]
_REFUSALS = {
    401: "the hub does not accept the token; log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; take one with write access, or a name of your own",
}


def check_repository(name: str) -> None:
    """Raise InputError unless ``name`` can be a repository ``OWNER/NAME``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    expected = f"--push-to-hub: expected OWNER/NAME, got {shortened(repr(name))}"
    if name.count("/") != 1 or not all(name.split("/")):
        raise InputError(expected)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{expected}: {reason(error)}") from None


def upload(directory: Path, repository: str, *, private: bool, progress: bool) -> str:
    """Upload ``directory`` to ``repository``, which is made where it does not exist.

    One commit, in which weights that the repository had and the directory has not are deleted.

    Args:
        repository: ``OWNER/NAME``.
        private: make it private; one that exists and is public is refused.
        progress: show how far it is, on stderr.

    Returns:
        The address of the commit.

    Raises:
        RunError: no network, no token, no permission, or the hub refuses; ``directory`` stays.
    """
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    silenced = not progress and not are_progress_bars_disabled()
    if silenced:
        disable_progress_bars()
    try:
        return _uploaded(directory, repository, private)
    except Exception as error:  # of the network, the hub's answers and the library: many classes
        raise RunError(
            f"{directory} is finished, but was not uploaded to {repository}: {_why(error)}. Upload "
            f"it later: hf upload {quote(repository)} {quote(str(directory))} ."
        ) from error
    finally:
        if silenced:
            enable_progress_bars()


def _uploaded(directory: Path, repository: str, private: bool) -> str:
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise RunError("there is no token; log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi(library_name="wuneng")
    api.create_repo(repository, private=private or None, exist_ok=True)
    if private and not api.model_info(repository).private:
        raise RunError("the repository exists and is public, and --private was given")
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=directory,
        commit_message="Upload a model by wuneng",
        delete_patterns=_WEIGHTS,
    )
    return str(commit.commit_url)


def _why(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    known = _REFUSALS.get(status) if isinstance(status, int) else None
    return (known or reason(error)).rstrip(".")
