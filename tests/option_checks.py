"""What the tests of several examples ask of their command lines."""

from types import ModuleType

import pytest


def refused(example: ModuleType, bad: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """A bad option ends the run before the digits are loaded, with an error that names it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "load_digits", lambda *_: pytest.fail("went on"))
        with pytest.raises(SystemExit) as stopped:
            example.main([*bad])
    assert stopped.value.code == 2
    assert bad[0] in capsys.readouterr().err.splitlines()[-1]


def told(example: ModuleType, capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """`--help` ends well, and tells these parts."""
    with pytest.raises(SystemExit) as stopped:
        example.main(["--help"])
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert [part for part in parts if part not in printed] == []
