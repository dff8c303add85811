"""What a visitor meets first is there, small, and says the same as the package."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import schematic

import functional_hyper as fh

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("examples/*.md")]
FIGURES = sorted((ROOT / "examples/figures").glob("*.png"))
SHARED = {"checkpoints", "data", "dynamics", "pictures", "step_folders", "training"}  # no examples of their own


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())  # not to other sites, not within the page
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_example_has_its_command() -> None:
    text = (ROOT / "examples/README.md").read_text()
    scripts = {path.stem for path in ROOT.glob("examples/*.py")} - SHARED
    assert [name for name in sorted(scripts) if f"`python examples/{name}.py" not in text] == []


def test_every_figure_is_shown() -> None:
    shown = [
        (page.parent / link).resolve() for page in PAGES for link in re.findall(r"\]\((.*?\.png)\)", page.read_text())
    ]
    assert [figure.name for figure in FIGURES if figure.resolve() not in shown] == []


@pytest.mark.parametrize("script", sorted(ROOT.glob("examples/*.py")), ids=lambda script: script.name)
def test_examples_stay_small(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 250


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_figures_are_small(figure: Path) -> None:
    assert 1_000 < figure.stat().st_size < 100_000


def test_the_schematic_is_drawn_again(tmp_path: Path) -> None:
    schematic.main(["--out", str(tmp_path)])
    assert (tmp_path / "schematic.png").read_bytes().startswith(b"\x89PNG")


def test_make_figures_makes_every_figure() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    recipe = subprocess.run(["make", "-n", "figures"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    runs = [path for path in ROOT.glob("examples/*.py") if path.stem in recipe]
    told = "\n".join([recipe, *(path.read_text() for path in runs)])  # a script may draw several
    assert [figure.name for figure in FIGURES if figure.stem not in told] == []


def test_the_version_is_told_alike() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {fh.__version__}\n" in citation
    assert citation.startswith("cff-version: 1.2.0\n")
    assert f"\n## [{fh.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f'version = "{fh.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_guide_for_contributors_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 50
