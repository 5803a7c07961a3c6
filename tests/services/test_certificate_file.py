"""The times of a certificate, and what reading them imports."""

import datetime as dt
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from minismtp.services.certificate_file import certificates_of


@pytest.mark.parametrize("year", [1999, 2049, 2050, 2999], ids=str)
def test_end_of_a_certificate_is_read_with_two_and_four_digits_of_the_year(
    year: int, tmp_path: Path
) -> None:
    end = dt.datetime(year, 2, 28, 23, 59, 58, tzinfo=dt.UTC)
    issued = trustme.CA().issue_cert(
        "a.example", not_before=dt.datetime(1990, 1, 1, tzinfo=dt.UTC), not_after=end
    )
    path = tmp_path / "certificate.pem"
    issued.cert_chain_pems[0].write_to_path(path)
    [certificate] = certificates_of(path)
    assert certificate.end == end.timestamp()


def test_times_are_read_without_a_further_module(tmp_path: Path) -> None:
    """Each worker reads them after the fork, where an import takes ten times its memory."""
    path = tmp_path / "certificate.pem"
    trustme.CA().issue_cert("a.example").cert_chain_pems[0].write_to_path(path)
    script = (
        "import sys; from pathlib import Path\n"
        "from minismtp.services.certificate_file import certificates_of\n"
        "before = {*sys.modules}; certificates_of(Path(sys.argv[1]))\n"
        "print(*({*sys.modules} - before))"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
