"""`softrepa push`, `softrepa export`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--tokens", required=True, type=click.Path(path_type=Path), help="Soft-token file.")
@click.option("--repo", required=True, help="OWNER/NAME on the Hugging Face hub; made where it is not there.")
@click.option("--report", type=click.Path(path_type=Path), help="evaluation.json of these tokens.")
@click.option("--data-licence", help="Of the images and captions that they were trained on, for the card.")
@click.option("--dry-run", is_flag=True, help="Show the card and the files; send nothing.")
def push(tokens: Path, repo: str, report: Path | None, data_licence: str | None, dry_run: bool) -> None:
    """Put soft tokens on the Hugging Face hub, with a model card; the hub's token is HF_TOKEN."""
    from softrepa_pipeline.publishing import hub
    from softrepa_pipeline.publishing.model_card import read_published

    contents = hub.files_to_push(read_published(tokens, report), repo, data_licence)
    if not dry_run:
        click.echo(hub.push(contents, repo))
        return
    click.echo(contents["README.md"].decode())
    for name, content in contents.items():
        click.echo(f"{len(content):>12,} bytes  {name}")
    click.echo(f"nothing was sent to {repo} (--dry-run)")


@click.command()
@click.option("--format", "kind", type=click.Choice(("diffusers", "comfyui")), default="diffusers", show_default=True)
@click.option("--tokens", required=True, type=click.Path(path_type=Path), help="Soft-token file.")
@click.option("--base", help="diffusers: folder or hub id of the base that they were trained on.")
@click.option("--copy-base", is_flag=True, help="diffusers: copy the base's weights instead of linking to them.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write; it must not be there.")
def export(kind: str, tokens: Path, base: str | None, copy_base: bool, out: Path) -> None:
    """Write a folder that draws with the tokens without this package: for stock diffusers, or a node of ComfyUI."""
    if kind == "comfyui":
        from softrepa_pipeline.publishing.comfyui_folder import export_comfyui

        export_comfyui(tokens, out)
        click.echo(f"{out}: with it in ComfyUI/custom_nodes there is a node `Apply Soft Tokens (SoftREPA)`")
        return
    if base is None:
        raise click.UsageError("--format diffusers needs --base")
    from softrepa_pipeline.publishing.diffusers_folder import export_diffusers

    export_diffusers(tokens, base, out, copy_base)
    click.echo(f'DiffusionPipeline.from_pretrained("{out}", trust_remote_code=True)')
