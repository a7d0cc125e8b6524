"""A ranker on several devices answers as one on one device, and closes all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flame.config import Config, OrchestratorConfig
from flame.engine.backends.eager import EagerEngine
from flame.engine.package import ModelPackage
from flame.features.pipeline import FeaturePipeline
from flame.metrics import Metrics
from flame.orchestrator.profiles import default_profiles
from flame.ranker import Ranker
from flame.records import RankRequest
from tests.faulty_engine import nth
from tests.ranker.parts import SpoilingEngine, close_to
from tests.ranker.world import FEATURES, filled_store, requests


def test_two_devices_answer_as_one(package: ModelPackage, bench) -> None:
    settings = OrchestratorConfig(executors=1, max_in_flight=40)
    schema, profiles = package.spec.input, default_profiles(package.spec, settings)
    engines = [SpoilingEngine(EagerEngine(package, profiles)) for _ in range(2)]
    metrics = Metrics()
    features = FeaturePipeline(schema, filled_store(schema), FEATURES, metrics)
    one = bench(max_in_flight=40)
    asked = requests(schema, 30, seed=4)
    engines[1].fails = nth(2)
    with Ranker(engines, features, Config(orchestrator=settings), metrics) as ranker:
        assert ranker.devices == ("cpu", "cpu")
        assert ranker.device == "cpu, cpu"
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(ranker.start, asked))
        failed = [answer for answer in answers if answer.exception(60)]
        assert len(failed) <= 2
        for request, answer in zip(asked, answers, strict=True):
            if answer not in failed:
                close_to(answer.result(), one.oracle(request))
        close_to(
            ranker.rank(RankRequest(user=1, candidates=np.arange(1, 5))),
            one.oracle(RankRequest(user=1, candidates=np.arange(1, 5))),
        )
    assert all(engine.closed for engine in engines)
