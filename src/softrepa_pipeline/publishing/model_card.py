"""The README.md that stands beside published soft tokens: what they are, what was measured, where they fail."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from softrepa_pipeline.evaluation.report.tables import distance_rows, measure_rows, task_rows
from softrepa_pipeline.soft_tokens import SoftTokensConfig, load_soft_tokens

TOKENS_FILE = "soft_tokens.safetensors"
# Title and paper of each objective.
_METHODS = {
    "softrepa": ("SoftREPA", "2503.08250"),
    "agsm": ("AGSM", "2605.30038"),
    "dsm": ("denoising alone, SoftREPA's control", "2503.08250"),
}
# The hub's own names of licences; any other is `other`, by name.
_HUB_LICENCES = {
    *("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *("openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "gpl-3.0", "agpl-3.0", "unknown"),
}


@dataclass(frozen=True)
class Published:
    """Soft tokens as their file describes them, with the evaluation that was made of them, if there is one."""

    file: Path
    config: SoftTokensConfig
    num_parameters: int
    metadata: dict[str, str]
    evaluation: dict[str, Any] | None

    @property
    def settings(self) -> dict[str, Any]:
        """How they were trained; empty where the file does not say."""
        return json.loads(self.metadata.get("settings", "{}"))


def read_published(tokens: Path, report: Path | None = None) -> Published:
    """Read a soft-token file and the evaluation.json of its evaluation.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged, or the evaluation is of other tokens or of another version of this program.
    """
    loaded, metadata = load_soft_tokens(tokens)
    evaluation = None if report is None else _read_evaluation(report, tokens, metadata)
    return Published(tokens, loaded.config, loaded.num_parameters, metadata, evaluation)


def model_card(published: Published, repo: str, data_licence: str | None = None) -> str:
    """README.md for the repository `repo` (owner/name): front matter as the hub reads it, then text.

    `data_licence` is that of the images and captions; the card says so where it is not known.
    """
    metadata, summary = published.metadata, published.evaluation
    method, paper = _METHODS.get(metadata.get("objective", ""), ("an objective that its file does not name", ""))
    tasks, measures = (task_rows(summary), measure_rows(summary)) if summary else ([], [])
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((files(__package__) / "model_card.md.j2").read_text("utf-8"))
    return template.render(
        front_matter=_front_matter(metadata, paper),
        repo=repo,
        tokens_file=TOKENS_FILE,
        config=published.config,
        num_parameters=published.num_parameters,
        sha256=hashlib.sha256(published.file.read_bytes()).hexdigest(),
        metadata=metadata,
        base=metadata.get("base_model") or "a base that the file does not name",
        base_id=_hub_id(metadata.get("base_model", "")),
        method=method,
        paper=paper,
        data_licence=data_licence,
        settings=published.settings,
        summary=summary,
        tasks=tasks,
        measures=measures,
        compared=[*tasks, *(row for row in measures if not row["not_measured"])],
        distances=distance_rows(summary) if summary else [],
    )


def without_folders(value: Any) -> Any:
    """The same JSON with absolute paths cut to their last part: where files lie here is nobody's business."""
    if isinstance(value, dict):
        return {name: without_folders(own) for name, own in value.items()}
    if isinstance(value, list):
        return [without_folders(own) for own in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _read_evaluation(report: Path, tokens: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if not report.is_file():
        raise FileNotFoundError(f"no evaluation at {report}; `kedro run --pipeline evaluate` writes one")
    try:
        summary = without_folders(json.loads(report.read_text()))
        task_rows(summary), measure_rows(summary), distance_rows(summary)
        found = (summary["family"], summary["objective"], summary["tokens_sha256"])
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{report} is no evaluation of this version of the program ({error!r}); "
            "run `kedro run --pipeline evaluate` again"
        ) from error
    wanted = (metadata["family"], metadata.get("objective"), hashlib.sha256(tokens.read_bytes()).hexdigest())
    if found != wanted:
        raise ValueError(f"{report} is of other soft tokens than {tokens}: {_said(found)}, not {_said(wanted)}")
    return summary


def _said(identity: tuple[Any, ...]) -> str:
    family, objective, sha256 = identity
    return f"{family} {objective} {str(sha256)[:12]}"


def _hub_id(base: str) -> str | None:
    """The base where its name is one of the hub's; a folder's name is not."""
    owner, _, name = base.partition("/")
    return base if owner and name and "/" not in name else None


def _front_matter(metadata: dict[str, str], paper: str) -> str:
    licence = metadata.get("licence") or "unknown"
    known = licence.lower() in _HUB_LICENCES
    tags = ["text-to-image", "diffusion", "soft-tokens", metadata.get("objective", ""), metadata["family"]]
    tags += [f"arxiv:{paper}"] if paper else []
    card = ModelCardData(
        base_model=_hub_id(metadata.get("base_model", "")),
        library_name="diffusers",
        license=licence.lower() if known else "other",
        license_name=None if known else licence.lower().replace(" ", "-"),
        pipeline_tag="text-to-image",
        tags=[tag for tag in tags if tag],
    )
    return card.to_yaml().strip()
