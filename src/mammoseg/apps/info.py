"""`mammoseg info`: what is installed."""

from __future__ import annotations

import platform
from pathlib import Path

import click

from mammoseg import __version__
from mammoseg.bundle import open_bundle
from mammoseg.errors import BundleError
from mammoseg.pipeline import settings_of
from mammoseg.runtime import RUNTIMES, runtime_version


@click.command()
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="BUNDLE",
    help="Bundle to describe; the installed one by default.",
)
@click.option("--card", is_flag=True, help="Print the bundle's card: data, licences, results, limits.")
def info(weights: Path | None, card: bool) -> None:
    """Say which version, runtimes and weights are in use."""
    try:
        bundle = open_bundle(weights)
    except BundleError:
        if weights is not None:
            raise
        bundle = None
    if card:
        if bundle is None:
            raise BundleError("this installation has no weights, so there is no card")
        click.echo(bundle.card)
        return
    click.echo(f"mammoseg {__version__}, Python {platform.python_version()}. Research software, not for clinical use.")
    for kind in RUNTIMES:
        try:
            version = runtime_version(kind)
        except ImportError:
            version = "not installed"
        click.echo(f"runtime   {kind} {version}{' (default)' if kind == 'openvino' else ''}")
    if bundle is None:
        click.echo("weights   none installed; name a bundle with --weights")
        return
    size = sum(f.stat().st_size for f in bundle.directory.iterdir() if f.is_file()) / 1e6
    click.echo(f"weights   {bundle.name}, {size:.1f} MB, sha256 {bundle.sha256}")
    for name, network in bundle.config["networks"].items():
        config = dict(network["config"])
        config |= config.pop("network", {})
        click.echo(f"          {name}: {', '.join(f'{k} {v}' for k, v in config.items())}")
    fusion = settings_of(bundle).fusion
    click.echo(f"fusion    {fusion.method}, lambda {fusion.lam:g}, lesions from score {fusion.lesion_score_min:g}")
    points = settings_of(bundle).operating_points
    if points:
        listed = ", ".join(f"{p.fpi:g} (score {p.score_min:.3f})" for p in points)
        click.echo(f"points    --operating-point, false positives an image: {listed}")
    trained = len(bundle.training.get("patient_sha256", ()))
    click.echo(
        f"training  {trained} patients, {len(bundle.training.get('image_sha256', ()))} images (mammoseg info --card says more)"
    )
