"""Recordings are read whatever their dress: format, packing, delimiter, names, time stamps; bad rows go aside."""

from __future__ import annotations

import csv
import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from streaming.errors import UsageError
from streaming.generators.recording import FRAME, Recording, read
from streaming.generators.replay import SHIPPED

MOMENT = datetime(2020, 12, 18, 6, 15, 50, 250_000, tzinfo=UTC)
LATER = MOMENT + timedelta(seconds=1)
SECONDS = 1_608_272_150


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def times(recording: Recording) -> list[datetime]:
    return recording.frame["event_time"].to_list()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2020-12-18T06:15:50.25Z", "2020-12-18T06:15:51.25Z"),
        ("2020-12-18 06:15:50.250", "2020-12-18 06:15:51.250"),
        ("2020/12/18 6:15:50.250000", "2020/12/18 6:15:51,250"),
        ("2020-12-18T07:15:50.25+01:00", "2020-12-18T00:45:51.250-0530"),
        ("2020-12-18T06:15:50.250000000+00", "2020-12-18 06:15:51.25 UTC"),
        (f"{SECONDS}.25", f"{SECONDS + 1}.25"),
        (f"{SECONDS}250", f"{SECONDS + 1}250"),
        (f"{SECONDS}250000", f"{SECONDS + 1}250000"),
        (f"{SECONDS}250000000", f"{SECONDS + 1}250000000"),
        ("1.60827215025e9", "1608272151.25"),
    ],
)
@pytest.mark.parametrize("packing", ["drive.csv", "drive.csv.gz", "drive.txt", "drive"])
def test_times_are_understood_in_every_packing(tmp_path: Path, packing: str, first: str, second: str) -> None:
    text = f'time,lat,lon\n"{first}",45.5,13.5\n"{second}",45.6,13.6\n'
    path = tmp_path / packing
    if packing.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        write(path, text)
    recording = read(path)
    assert times(recording) == [MOMENT, LATER]
    assert recording.frame["latitude"].to_list() == [45.5, 45.6]
    assert recording.frame.schema == FRAME
    assert recording.vehicles == ["drive"]
    assert recording.rejected == 0


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("kind", ["zone", "naive", "other zone", "integer", "text"])
def test_parquet_times_are_understood_in_every_type(tmp_path: Path, unit: str, kind: str) -> None:
    when = pl.Series("timestamp", [MOMENT, LATER]).cast(pl.Datetime(unit, "UTC"))  # type: ignore[arg-type]
    column = {
        "zone": when,
        "naive": when.dt.replace_time_zone(None),
        "other zone": when.dt.convert_time_zone("Europe/Zagreb"),
        "integer": when.to_physical(),
        "text": when.dt.to_string("iso"),
    }[kind]
    frame = pl.DataFrame({"timestamp": column, "Latitude": [1, 2], "LNG": [3.0, 4.0], "uid": [7, 8]})
    frame.write_parquet(tmp_path / "drive.parquet")
    recording = read(tmp_path / "drive.parquet")
    assert times(recording) == [MOMENT, LATER]
    assert recording.frame["vehicle"].to_list() == ["7", "8"]
    assert recording.frame["longitude"].to_list() == [3.0, 4.0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("header", "ours", "value"),
    [
        ("vehicle,event_time,latitude,longitude,speed_mps", "speed_mps", 36.0),
        ("uid,datetime,lat,lng,Speed (km/h)", "speed_mps", 10.0),
        ("taxi_id,Timestamp,LATITUDE,Long,speed_mph", "speed_mps", 16.09344),
        ("device,ts,Lat,Lon,elevation", "altitude_m", 36.0),
        ("device,ts,Lat,Lon,Altitude [ft]", "altitude_m", 10.9728),
        ("device,ts,Lat,Lon,bearing", "heading_deg", 36.0),
        ("device,ts,Lat,Lon,HDOP", "dilution", 36.0),
        ("device,ts,Lat,Lon,fuel", "speed_mps", None),
    ],
)
def test_columns_are_known_by_common_names_and_units(
    tmp_path: Path, delimiter: str, header: str, ours: str, value: float | None
) -> None:
    row = f"seven,{SECONDS}.25,45.5,13.5,36"
    path = write(tmp_path / "drive.txt", f"{header}\n{row}\n".replace(",", delimiter))
    found = read(path).frame.row(0, named=True)
    assert (found["vehicle"], found["event_time"], found["latitude"]) == ("seven", MOMENT, 45.5)
    assert found[ours] == (None if value is None else pytest.approx(value))


def test_a_mapping_goes_before_known_names(tmp_path: Path) -> None:
    text = "lat,y,lng,x,datetime,t,uid\n1,45.5,1,13.5,2001-01-01,2020-12-18T06:15:50.25Z,bus\n"
    path = write(tmp_path / "drive.csv", text)
    row = read(path, {"latitude": "y", "longitude": "x", "event_time": "t", "vehicle": "uid"}).frame.row(0, named=True)
    assert (row["latitude"], row["longitude"], row["event_time"], row["vehicle"]) == (45.5, 13.5, MOMENT, "bus")


def test_date_and_time_in_two_columns_are_one_time(tmp_path: Path) -> None:
    path = write(tmp_path / "drive.csv", "date,time,lat,lon\n2020-12-18,06:15:50.25,45.5,13.5\n")
    assert times(read(path)) == [MOMENT]
    path = write(tmp_path / "drive.csv", "day,clock,lat,lon\n2020-12-18,06:15:50.25,45.5,13.5\n")
    assert times(read(path, {"event_time": "day+clock"})) == [MOMENT]


def test_a_file_without_names_is_mapped_by_number(tmp_path: Path) -> None:
    path = write(tmp_path / "1131.txt", f"1131,2020-12-18 06:15:50.25,13.5,45.5\n1131,{SECONDS + 1}.25,13.6,45.6\n")
    with pytest.raises(UsageError, match="longitude=3"):
        read(path)
    recording = read(path, {"vehicle": "1", "event_time": "2", "longitude": "3", "latitude": "4"})
    assert times(recording) == [MOMENT, LATER]
    assert recording.frame["longitude"].to_list() == [13.5, 13.6]


def test_decimal_commas_are_read_where_the_comma_does_not_part_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "drive.csv", f"ts;lat;lon\n{SECONDS};45,5;13,25\n")
    assert read(path).frame.select("latitude", "longitude").row(0) == (45.5, 13.25)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_other_programs_are_read_in_their_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "drive.csv"
    path.write_bytes(f"# made by a logger\r\n\r\nts,lat,lon,uid\r\n{SECONDS},45.5,13.5,Škoda\r\n".encode(encoding))
    assert read(path).vehicles == ["Škoda"]


def test_what_says_unknown_becomes_null(tmp_path: Path) -> None:
    rows = ["NaN,", "-1,-1", "null,n/a", "0,360", "1,-"]
    path = write(tmp_path / "d.csv", "ts,lat,lon,speed,course\n" + "".join(f"{SECONDS},1,2,{row}\n" for row in rows))
    frame = read(path).frame
    assert frame["speed_mps"].to_list() == [None, None, None, 0.0, 1.0]
    assert frame["heading_deg"].to_list() == [None, None, None, 0.0, None]


def test_rows_are_sorted_by_time_and_equal_times_keep_their_order(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "ts,lat,lon,uid\n3,1,1,a\n1,1,1,b\n3,1,1,c\n2,1,1,d\n")
    assert read(path).frame["vehicle"].to_list() == ["b", "d", "a", "c"]


BAD_ROWS = {
    '2,"45.5,13.5,a': "not CSV",
    "2,45.5,13.5": "3 fields instead of 4",
    "2,45.5,13.5,a,b": "5 fields instead of 4",
    "noon,45.5,13.5,a": "event_time: neither ISO",
    ",45.5,13.5,a": "event_time: empty",
    "2020-13-40 25:61:61,45.5,13.5,a": "event_time: neither ISO",
    "18.12.2020 06:15,45.5,13.5,a": "event_time: neither ISO",
    "-5,45.5,13.5,a": "event_time: not between",
    "2,north,13.5,a": "latitude: not a number",
    "2,inf,13.5,a": "latitude: not a number",
    "2,90.5,13.5,a": "latitude: out of range",
    "2,45.5,-180.5,a": "longitude: out of range",
    "2,45.5,13.5,": "vehicle: empty",
    '2,45.5,1"3.5,"a': "not CSV",
}


def test_bad_rows_are_counted_and_put_aside_with_line_reason_and_text(tmp_path: Path) -> None:
    good = "{},45.5,13.5,a"
    lines = [line for place, bad in enumerate(BAD_ROWS) for line in (good.format(place), bad)]
    path = write(tmp_path / "d.csv", "\n".join(["ts,lat,lon,uid", *lines, good.format(99)]) + "\n")
    recording = read(path, aside=tmp_path / "aside")
    assert recording.rejected == len(BAD_ROWS)
    assert recording.frame.height == len(BAD_ROWS) + 1
    assert recording.aside == tmp_path / "aside" / "d.csv.rejected.csv"
    with recording.aside.open(newline="") as file:
        aside = sorted(csv.DictReader(file), key=lambda row: int(row["line"]))
    assert [row["text"] for row in aside] == list(BAD_ROWS)
    assert [int(row["line"]) for row in aside] == [3 + 2 * place for place in range(len(BAD_ROWS))]
    assert all(row["reason"].startswith(reason) for row, reason in zip(aside, BAD_ROWS.values(), strict=True))


def test_bad_rows_of_parquet_go_aside_too(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pl.DataFrame({"ts": [1.0, None, 3.0], "lat": [float("nan"), 1.0, 91.0], "lon": [1.0, 1.0, 1.0]}).write_parquet(path)
    recording = read(path, aside=tmp_path)
    assert recording.frame["latitude"].to_list() == [None]
    assert recording.rejected == 2
    assert recording.aside is not None
    assert [line.split(",")[0] for line in recording.aside.read_text().splitlines()[1:]] == ["2", "3"]


def test_a_file_without_bad_rows_leaves_nothing_aside(tmp_path: Path) -> None:
    recording = read(write(tmp_path / "d.csv", "ts,lat,lon\n1,1,1\n"), aside=tmp_path / "aside")
    assert (recording.rejected, recording.aside) == (0, None)
    assert not (tmp_path / "aside").exists()


def test_blocks_join_without_losing_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.generators.recording.LINES_AT_ONCE", 7)
    rows = [f"{second},1,1" if second % 5 else "x,1,1" for second in range(100)]
    recording = read(write(tmp_path / "d.csv", "\n".join(["ts,lat,lon", *rows])), aside=tmp_path)
    assert [time.second + 60 * time.minute for time in times(recording)] == [n for n in range(100) if n % 5]
    assert recording.rejected == 20
    assert recording.aside is not None
    assert len(recording.aside.read_text().splitlines()) == 21


GPX = """<?xml version="1.0"?><gpx version="1.0" creator="a test"><trk><trkseg>
<trkpt lat="45.5" lon="13.5"><ele>211</ele><time>2020-12-18T06:15:51.25Z</time><course>370</course><speed>7.5</speed>
<hdop>1.5</hdop></trkpt><trkpt lat="45.4" lon="13.4"><time>2020-12-18T07:15:50.25+01:00</time></trkpt>
<trkpt lat="45.3" lon="13.3"/></trkseg></trk></gpx>"""


def test_gpx_tracks_are_read_with_what_they_carry(tmp_path: Path) -> None:
    recording = read(write(tmp_path / "bike.gpx", GPX), aside=tmp_path)
    assert times(recording) == [MOMENT, LATER]
    assert recording.frame.drop("event_time").rows() == [
        ("bike", 45.4, 13.4, None, None, None, None),
        ("bike", 45.5, 13.5, 211.0, 7.5, 10.0, 1.5),
    ]
    assert recording.rejected == 1
    assert recording.aside is not None
    assert "event_time: empty" in recording.aside.read_text()


def test_the_shipped_recording_reads_whole() -> None:
    recording = read(SHIPPED)
    assert (recording.frame.height, recording.rejected) == (104, 0)
    assert recording.frame["event_time"].is_sorted()
    assert recording.frame.select("latitude", "longitude", "altitude_m").null_count().row(0) == (0, 0, 0)
    assert SHIPPED.stat().st_size < 300_000
    assert (SHIPPED.parent / "ATTRIBUTION.md").read_text().count(SHIPPED.name) >= 1


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b" \n\n", "is empty"),
        ("a.csv", b"ts,lat,lon\n", "no row that can be read"),
        ("a.csv", b"ts,lat,lon\nx,y,z\n", "line 2: event_time"),
        ("a.csv", b"ts,lat,speed\n1,2,3\n", "known as longitude"),
        ("a.csv", b"hello world\n", "known as event_time or latitude"),
        ("a.csv", b"# only\n", "known as event_time"),
        ("a.gpx", b"<gpx><trk>", "can't be read"),
        ("a.gpx", b'<gpx version="1.1" creator="x"></gpx>', "no track"),
        ("a.parquet", b"PAR1 this is not Parquet", "can't be read"),
        ("a.csv.gz", gzip.compress(b"ts,lat,lon\n1,1,1\n")[:-9], "can't be read"),
        ("a.csv.gz", b"\x1f\x8b", "can't be read"),
        ("a.bin", bytes(range(256)), "known as|can't be"),
    ],
)
def test_a_file_that_cannot_be_replayed_says_why(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        read(path)
    assert name in str(caught.value)


def test_a_missing_file_a_missing_column_and_a_wrong_name_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="no such file"):
        read(tmp_path)
    path = write(tmp_path / "d.csv", "ts,lat,lon\n1,1,1\n")
    with pytest.raises(UsageError, match=r"no column 'north' for latitude\. Its columns: ts, lat, lon"):
        read(path, {"latitude": "north"})
    with pytest.raises(UsageError, match="altitude: no column of positions"):
        read(path, {"altitude": "lat"})
