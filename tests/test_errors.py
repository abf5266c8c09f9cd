"""Errors: what is never in them."""

from __future__ import annotations

import pytest

from ztw.errors import without_password


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://ann:secret@host:5000/x", "http://host:5000/x"),
        ("http://secret@host", "http://host"),
        ("http://:secret@host", "http://host"),
        ("'postgresql://ann:se/c@ret@host/db' failed", "'postgresql://host/db' failed"),
        (
            "postgresql://host/db?user=ann&password=secret&x=1",
            "postgresql://host/db?user=ann&password=...&x=1",
        ),
        ("http://a:secret@b and http://c:secret@d", "http://b and http://d"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("http://[::1]:5000/a", "http://[::1]:5000/a"),
        ("sqlite:////folder/a@b.db", "sqlite:////folder/a@b.db"),
        ("ann@host", "ann@host"),
    ],
)
def test_passwords_of_uris_are_left_out(text, left):
    assert without_password(text) == left
