"""Package sources of scripts/install_locked.py: uv installs from exactly the sources that pip is configured for."""

from install_locked import pip_options, uv_environment


def test_options_of_pip_are_merged_in_the_order_of_precedence() -> None:
    listing = "\n".join(
        [
            ":env:.find-links='/c'",
            "global.find-links='/a'",
            "global.retries='3'",
            "install.find-links='/b'",
            "download.x='y'",
        ]
    )

    assert pip_options(listing) == {"find-links": "/c", "retries": "3"}


def test_sources_of_pip_become_sources_of_uv() -> None:
    environment = uv_environment(
        {
            "index-url": "https://a.example/simple",
            "extra-index-url": "file:///b/simple\nfile:///c/simple",
            "find-links": "/wheels /more",
            "constraint": "/etc/constraints.txt",
            "cert": "/etc/ca.crt",
            "default-timeout": "60",
            "quiet": "1",
        }
    )

    assert environment == {
        "UV_DEFAULT_INDEX": "https://a.example/simple",
        "UV_INDEX": "file:///b/simple file:///c/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_CONSTRAINT": "/etc/constraints.txt",
        "SSL_CERT_FILE": "/etc/ca.crt",
        "UV_HTTP_TIMEOUT": "60",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_NO_CONFIG": "1",
    }


def test_pip_installs_where_uv_has_no_equivalent() -> None:
    assert uv_environment({"find-links": "/wheels", "no-index": "1"}) is None
    assert uv_environment({"client-cert": "/etc/client.pem"}) is None
