"""What reaches standard output and standard error."""

import logging

from kvrag.cli.terminal import complain, quiet, results, write_json


def test_quiet_work_leaves_standard_output_to_results(capsys):
    with quiet():
        print("noise")  # noqa: T201
        results().print("a result")
        write_json({"another": 1})
    out, err = capsys.readouterr()
    assert out == 'a result\n{\n  "another": 1\n}\n'
    assert err == "noise\n"


def test_warnings_are_lines_and_errors_are_left_to_whoever_catches_them(capsys):
    with quiet():
        logging.getLogger("kvrag.store").warning("a packet\nis %s", "gone")
        logging.getLogger("kvrag.store").error("raised as well")
    assert capsys.readouterr() == ("", "warning: a packet is gone\n")


def test_nothing_written_by_others_reaches_the_terminal_as_a_command(capsys):
    complain("a file named [bold]\x1b[2Jx\n.txt")
    assert capsys.readouterr().err == "error: a file named [bold]\N{REPLACEMENT CHARACTER}[2Jx .txt\n"
