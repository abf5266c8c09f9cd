"""Run the examples in the docstrings of the public names."""

import doctest

import pytest

import ztw
from ztw.catalogue.parts import PARTS

PUBLIC = {name: getattr(ztw, name) for name in dir(ztw) if name != "__version__"}


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for test in doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={}):
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        runner.run(test)
        assert not runner.failures
    for registered in list(PARTS):
        PARTS.pop(registered).remove()
