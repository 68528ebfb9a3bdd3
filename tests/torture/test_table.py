from __future__ import annotations

from torture.table import Line, table


def test_each_test_is_a_line_in_the_order_of_the_rows() -> None:
    lines = table(
        [
            Line("R12", "test_power", "nothing lost", {"images": 1234}, "failed", 61.4),
            Line("R1", "test_kills", "300 kills", {"kills": 312, "lost": 0, "seed": 7}, "passed", 588.0),
            Line("", "test_other", "", {}, "skipped", 0.0, "only root can mount"),
        ]
    )
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    assert cells[0][:5] == ["", "test", "kills", "lost", "repeated"]
    assert [line[0] for line in cells[2:]] == ["R1", "R12", ""]
    kills, power, other = cells[2:]
    assert kills[2:4] == ["312", "0"] and kills[7] == "7" and kills[-1] == "yes" and kills[-2] == "300 kills"
    assert power[-1] == "NO" and "images: 1,234" in power
    assert other[-1] == "skipped: only root can mount"


def test_the_columns_stand_below_each_other() -> None:
    lines = table([Line("R1", "a", "b", {"kills": 1}, "passed"), Line("R2", "a longer one", "b", {}, "passed")])
    assert len({tuple(i for i, c in enumerate(line) if line[i : i + 3] == " | ") for line in lines[2:]}) == 1
