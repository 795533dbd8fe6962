"""Addresses of servers, by what is said of them before anything is sent."""

import pytest

from brim.support.http import url_problem

USABLE = ["http://localhost:8000", "https://a.example/v1/", "http://[::1]:80", "http://10.0.0.1"]
UNUSABLE = ["localhost:8000", "ftp://a.example", "http://", "http://[::1", "http://localhost:80a0",
            "http://localhost:99999", ""]  # fmt: skip
SECRET = ["http://me@a.example", "http://me:word@a.example:80", "http://a.example?key=1",
          "http://a.example/#key"]  # fmt: skip


@pytest.mark.parametrize("url", USABLE)
def test_usable(url):
    assert url_problem(url, "teacher.key_env") is None


@pytest.mark.parametrize("url", UNUSABLE)
def test_unusable(url):
    assert url_problem(url, "teacher.key_env") == "is no URL such as http://localhost:8000"


@pytest.mark.parametrize("url", SECRET)
def test_with_a_secret(url):
    assert "put the key into an environment variable" in url_problem(url, "teacher.key_env")
