import pytest

from pipeline.core.secrets import without_secret


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@host/a/b.csv?x=1", "https://host/a/b.csv"),
        ("https://host?x=1", "https://host"),
        ("s3://key:secret@bucket/k.csv", "s3://bucket/k.csv"),
        ("data/a@b.csv", "data/a@b.csv"),
        ("https://host/p@q.csv", "https://host/p@q.csv"),
        ("sklearn:iris", "sklearn:iris"),
    ],
)
def test_address_is_shown_without_user_password_and_query(url, shown):
    assert without_secret(url) == shown
