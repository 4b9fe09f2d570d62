"""How fast packets are, beside what they replace and what the hardware allows."""

from kvrag.bench.bandwidth import Bandwidth, measure_bandwidth
from kvrag.bench.decoding import DecodeRow, measure_decoding
from kvrag.bench.first_token import FirstTokenRow, measure_first_token
from kvrag.bench.geometries import GEOMETRIES, open_geometry
from kvrag.bench.load import LoadBench, LoadRow, measure_loading
from kvrag.bench.report import BenchReport

__all__ = [
    "GEOMETRIES",
    "Bandwidth",
    "BenchReport",
    "DecodeRow",
    "FirstTokenRow",
    "LoadBench",
    "LoadRow",
    "measure_bandwidth",
    "measure_decoding",
    "measure_first_token",
    "measure_loading",
    "open_geometry",
]
