"""Sheets for raters, their answers, the page's server, and the figures."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import write_lines
from visa_core.cli import main
from visa_core.data.schema import DataError
from visa_core.evaluation.human.agreement import krippendorff_alpha
from visa_core.evaluation.human.answers import AnswerBook, read_answers
from visa_core.evaluation.human.scoring import score
from visa_core.evaluation.human.server import RatingServer
from visa_core.evaluation.human.sheets import make_sheets, read_json, read_system, write_sheets
from visa_core.values import SCHWARTZ


def profiles(path: Path, n: int, value: str, sign: float = 1.0) -> str:
    rows = [
        {"query": f"Question {i}?", "response": f"Response {i}.", "values": {value: sign}}
        for i in range(n)
    ]
    write_lines(path, rows)
    return f"{path.stem}={path}"


def rewrites(path: Path, n: int, target: dict[str, float]) -> str:
    rows = [
        {
            "query": f"Question {i}?",
            "response": f"Source {i}.",
            "rewrite": f"{i} rewritten.",
            "target": target,
        }
        for i in range(n)
    ]
    write_lines(path, rows)
    return f"{path.stem}={path}"


def export(folder: Path, comparison: int = 6, identification: int = 2, seed: int = 0) -> Path:
    """A sheet of two systems, made by the command."""
    out = folder / f"sheet{seed}"
    command = ["human", "export", "--out", str(out), "--seed", str(seed)]
    if comparison:
        command += ["--comparison", profiles(folder / "quokka.jsonl", comparison, "security")]
        command += [profiles(folder / "wombat.jsonl", comparison, "power", -1.0)]
    if identification:
        target = {"security": 1.0, "power": -0.5}
        command += ["--identification", rewrites(folder / "numbat.jsonl", identification, target)]
        command += [rewrites(folder / "dunnart.jsonl", identification, target)]
    assert main(command) == 0
    return out


def test_a_sheet_names_no_system(tmp_path: Path) -> None:
    out = export(tmp_path, 40, 3)
    text = (out / "sheet.json").read_text()
    assert not [
        name for name in ("quokka", "wombat", "numbat", "dunnart", "target") if name in text
    ]
    sheet, key = read_json(out / "sheet.json"), read_json(out / "key.json")
    sides = [key["items"][i["id"]]["a"] for i in sheet["items"] if i["task"] == "comparison"]
    assert 10 <= sides.count("quokka") <= 30  # 40 fair coins are outside with p = 0.0007
    for item in sheet["items"]:
        if item["task"] == "comparison":
            ours = "a" if key["items"][item["id"]]["a"] == "quokka" else "b"
            assert item[ours] == "Security: strongly promotes"
            assert item["ab".replace(ours, "")] == "Power: strongly opposes"
    shown = [i["response"] for i in sheet["items"] if i["task"] == "identification"]
    assert sorted(shown) == sorted([f"{i} rewritten." for i in range(3)] * 2)


def test_the_same_seed_gives_the_same_sheet(tmp_path: Path) -> None:
    systems = [
        read_system(profiles(tmp_path / f"{name}.jsonl", 9, value), "values", SCHWARTZ)
        for name, value in (("a", "power"), ("b", "security"))
    ]
    first, again, other = (make_sheets(systems, [], SCHWARTZ, most=5, seed=s) for s in (0, 0, 1))
    assert first.sheet == again.sheet != other.sheet
    assert len(first.sheet["items"]) == 5


def test_what_cannot_be_compared_is_counted(tmp_path: Path) -> None:
    ours = read_system(profiles(tmp_path / "quokka.jsonl", 4, "power"), "values", SCHWARTZ)
    zero = read_system(profiles(tmp_path / "wombat.jsonl", 3, "power"), "values", SCHWARTZ)
    zero.rows[("Question 0?", "Response 0.")]["values"] = {"power": -1.0}
    sheets = make_sheets([ours, zero], [], SCHWARTZ)
    assert len(sheets.sheet["items"]) == 1
    assert sheets.left_out == {"only one system has the row": 1, "both analyses say the same": 2}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"query": "q", "values": {}}, "field 'response' is missing"),
        ({"query": "q", "response": "r"}, "field 'values' must be an object"),
        ({"query": "q", "response": "r", "values": {"mood": 1}}, "unknown value 'mood'"),
        ("{", "not valid JSON"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: object, sentence: str) -> None:
    path = write_lines(tmp_path / "bad.jsonl", [{"query": "q", "response": "", "values": {}}, row])
    path.write_text(path.read_text().replace('"response": ""', '"response": "x"'))
    with pytest.raises(DataError) as error:
        read_system(f"x={path}", "values", SCHWARTZ)
    assert str(error.value).startswith(f"{path}:2: ") and sentence in str(error.value)


def test_bad_options_are_refused(tmp_path: Path, complaint) -> None:
    one = profiles(tmp_path / "one.jsonl", 2, "power")
    out = ("human", "export", "--out", tmp_path / "out")
    assert "give --comparison, --identification" in complaint(*out)
    assert "two systems with different names" in complaint(*out, "--comparison", one)
    assert "as NAME=FILE" in complaint(*out, "--comparison", "x", "y")
    assert "make it with visa human export" in complaint("human", "score", "--sheet", tmp_path)
    sheet = export(tmp_path)
    assert "has no answers yet" in complaint("human", "score", "--sheet", sheet)


def test_answers_to_another_sheet_are_not_mixed(tmp_path: Path) -> None:
    out = export(tmp_path)
    book = AnswerBook(out)
    book.put("anna", "c0001", {"overall": "a"})
    book.close()
    other = make_sheets(
        [
            read_system(f"{name}={tmp_path / name}.jsonl", "values", SCHWARTZ)
            for name in ("quokka", "wombat")
        ],
        [],
        SCHWARTZ,
        seed=5,
    )
    with pytest.raises(ValueError, match="answers to another sheet"):
        write_sheets(out, other)


def test_figures_of_known_answers(tmp_path: Path) -> None:
    """Two raters, ours better in 5 of 6 items to both, a tie to one in the sixth; signs by hand."""
    out = export(tmp_path)
    sheet, key = read_json(out / "sheet.json"), read_json(out / "key.json")
    answers: dict[str, dict[str, dict]] = {"anna": {}, "ben": {}}
    comparisons = [i["id"] for i in sheet["items"] if i["task"] == "comparison"]
    for number, item in enumerate(comparisons):
        side = "a" if key["items"][item]["a"] == "quokka" else "b"
        other = "b" if side == "a" else "a"
        for rater in answers:
            last = "alike" if rater == "anna" else other
            choice = side if number < 5 else last
            answers[rater][item] = dict.fromkeys(sheet["criteria"], choice)
    for item in (i["id"] for i in sheet["items"] if i["task"] == "identification"):
        good = key["items"][item]["system"] == "numbat"
        answers["anna"][item] = {"neutral": not good, "values": {"security": 1} if good else {}}
        # Power has the wrong sign.
        answers["ben"][item] = {"neutral": False, "values": {"security": 1, "power": 1}}
    del answers["ben"][comparisons[0]]["overall"]
    record = score(sheet, key, answers)
    assert record["incomplete"] == 1
    accuracy = record["comparison"]["criteria"]["accuracy"]
    # Five items at 1 (one of them by anna alone), one at (0.5 + 0) / 2.
    assert accuracy["win_rate"]["quokka"]["mean"] == pytest.approx((5 + 0.25) / 6)
    assert accuracy["win_rate"]["wombat"]["mean"] == pytest.approx(1 - (5 + 0.25) / 6)
    assert accuracy["win_rate"]["quokka"]["n"] == 6
    assert accuracy["choices"] == {"quokka": 9, "alike": 1, "wombat": 1}
    assert accuracy["alpha"]["units"] == 5
    visa = record["identification"]["systems"]["numbat"]
    other = record["identification"]["systems"]["dunnart"]
    # anna: security right (1 of 1), 9 of 10 signs; ben: 1 of 2, 9 of 10.
    assert visa["named_sign_matches"]["mean"] == pytest.approx(0.75)
    assert visa["matches_mean"] == pytest.approx(9.0)
    # anna names nothing: 8 of 10 signs, and no named value; ben as above.
    assert other["named_sign_matches"]["mean"] == pytest.approx(0.5)
    assert other["matches_mean"] == pytest.approx(8.5)
    wins = record["identification"]["wins"]["numbat"]["over"]["dunnart"]
    assert (wins["mean"], wins["n"]) == (1.0, 2)


def test_alpha_is_the_published_one() -> None:
    """Krippendorff's worked example (Computing Krippendorff's Alpha-Reliability, 2011): four
    observers, twelve units, gaps; 0.743 for nominal data, 0.849 for interval data.
    """
    table = {
        "A": "1 2 3 3 2 1 4 1 2 . . .",
        "B": "1 2 3 3 2 2 4 1 2 5 . 3",
        "C": ". 3 3 3 2 3 4 2 2 5 1 .",
        "D": "1 2 3 3 2 4 4 1 2 5 1 .",
    }
    labels = [
        (rater, str(unit), int(label))
        for rater, row in table.items()
        for unit, label in enumerate(row.split())
        if label != "."
    ]
    nominal = krippendorff_alpha(labels, "nominal")
    assert round(nominal["alpha"], 3) == 0.743
    assert nominal["units"] == 11
    assert round(krippendorff_alpha(labels, "interval")["alpha"], 3) == 0.849
    assert krippendorff_alpha(labels[:3], "nominal") == {"alpha": None, "units": 0}
    same = [(rater, "u", 1) for rater in "AB"]
    assert krippendorff_alpha(same, "nominal") == {"alpha": None, "units": 1}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RatingServer]:
    with RatingServer(export(tmp_path)) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(
    server: RatingServer,
    method: str,
    path: str,
    body: object = None,
    host: str | None = None,
    kind: str = "application/json",
) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    port = server.server_address[1]
    headers = {"Host": host or f"127.0.0.1:{port}", "Content-Type": kind}
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, headers)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, json.loads(text) if text.startswith("{") else {"text": text}


def test_an_answer_is_on_disk_before_it_is_confirmed(server: RatingServer) -> None:
    answer = {"rater": "anna", "item": "c0001", "answer": {"accuracy": "b"}}
    assert ask(server, "POST", "/api/answer", answer) == (200, {"saved": True, "complete": False})
    folder = server.book.folder
    assert read_answers(folder, server.book.sheet) == {"anna": {"c0001": {"accuracy": "b"}}}
    whole = answer | {"answer": {"accuracy": "b", "insight": "alike", "overall": "a"}}
    assert ask(server, "POST", "/api/answer", whole)[1]["complete"] is True
    status, sheet = ask(server, "GET", "/api/sheet?rater=anna")
    assert status == 200 and sheet["answers"]["c0001"]["overall"] == "a"
    ids = [item["id"] for item in sheet["items"]]
    others = [i["id"] for i in ask(server, "GET", "/api/sheet?rater=ben")[1]["items"]]
    assert sorted(ids) == sorted(others) and ids != others
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"item": "c9999"}, "no item 'c9999'"),
        ({"answer": {"accuracy": "c"}}, "is no answer to a comparison"),
        ({"answer": {"mood": "a"}}, "is no answer to a comparison"),
        ({"item": "i0001", "answer": {"values": {"power": 0.5}}}, "neither 1"),
        ({"item": "i0001", "answer": {"values": {"mood": 1}}}, "neither 1"),
        ({"item": "i0001", "answer": {"neutral": True, "values": {"power": 1}}}, "none when"),
        ({"rater": "../key"}, "rater's name"),
        ({"rater": ""}, "rater's name"),
        ({"more": 1}, "has the fields"),
    ],
)
def test_bad_answers_are_refused_and_not_kept(server, change: dict, sentence: str) -> None:
    answer = {"rater": "anna", "item": "c0001", "answer": {"accuracy": "b"}} | change
    status, reply = ask(server, "POST", "/api/answer", answer)
    assert status == 400 and sentence in reply["error"]
    assert not [r for r in read_answers(server.book.folder, server.book.sheet).values() if r]


def test_other_pages_cannot_use_the_server(server: RatingServer) -> None:
    """Not by a name that points here, not by a form, not for other files."""
    answer = {"rater": "anna", "item": "c0001", "answer": {"accuracy": "b"}}
    assert ask(server, "GET", "/api/sheet?rater=anna", host="evil.example")[0] == 403
    assert ask(server, "POST", "/api/answer", answer, host="evil.example:80")[0] == 403
    assert ask(server, "POST", "/api/answer", answer, kind="text/plain")[0] == 415
    assert ask(server, "POST", "/api/answer", {"x": "y" * 70_000})[0] == 413
    for path in ("/key.json", "/../key.json", "/answers/anna.jsonl"):
        assert ask(server, "GET", path)[0] == 404
    page = ask(server, "GET", "/")[1]["text"]
    assert "{nonce}" not in page


def test_the_command_scores_answers(tmp_path: Path, capsys, complaint) -> None:
    out = export(tmp_path, comparison=2)
    book = AnswerBook(out)
    full = dict.fromkeys(book.sheet["criteria"], "a")
    for rater in ("anna", "ben"):
        for item in book.items.values():
            comparing = item["task"] == "comparison"
            book.put(rater, item["id"], full if comparing else {"values": {"security": 1}})
    # The page may still be open: its hold of the files does not matter for reading.
    assert main(["human", "score", "--sheet", str(out)]) == 0
    book.close()
    printed = capsys.readouterr().out
    assert "side A in 1.000" in printed and "n = 2" in printed
    record = json.loads((out / "human.json").read_text())
    assert record["raters"] == {"anna": 6, "ben": 6}
    assert record["identification"]["wins"]["dunnart"]["over"]["numbat"]["mean"] == 0.5
    key = json.loads((out / "key.json").read_text())
    (out / "key.json").write_text(json.dumps(key | {"sheet": "another"}))
    assert "does not belong to" in complaint("human", "score", "--sheet", out)
