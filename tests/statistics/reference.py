"""Student's t, intervals, Welch's and the paired test and Holm's correction, as SciPy and statsmodels have
them.

Writes tests/fixtures/statistics.json, which the tests of src/report/statistics.rs are held against:

    pip install scipy==1.17.1 statsmodels==0.14.6
    python tests/statistics/reference.py > tests/fixtures/statistics.json
"""

import json
import math

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests


def sample(values):
    n = len(values)
    low, high = stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=stats.sem(values))
    return {
        "values": values,
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)),
        "interval": [float(low), float(high)],
    }


def test(a, b, paired):
    result = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    interval = result.confidence_interval(0.95)
    return {
        "a": a,
        "b": b,
        "t": float(result.statistic),
        "df": float(result.df),
        "p": float(result.pvalue),
        "interval": [float(interval.low), float(interval.high)],
    }


losses = [
    [3.1233, 3.1321, 3.1288],
    [3.0268, 3.0200],
    [4.3651, 4.3433, 4.3595, 4.3544, 4.3702],
    [0.2944, 0.2951, 0.2938, 0.2960],
    [10.3169, 2.6701, 3.4722],
    [3.123270801, 3.123270803, 3.123270806],
]
paired = [
    ([3.1233, 3.1321, 3.1288], [3.0968, 3.1200, 3.1071]),
    ([3.0268, 3.0200], [3.1, 3.05]),
    ([1.0, 2.0, 3.0, 4.0, 5.0], [1.1, 1.9, 3.2, 3.8, 5.05]),
]
p_values = [[0.01, 0.04, 0.03, 0.005], [0.2, 0.04], [0.5], [1e-9, 1e-9, 0.04, 0.049, 0.9, 1.0]]
tables = {
    "two_sided_p": [
        [t, df, float(2 * stats.t.sf(t, df))]
        for df in [1, 1.37, 2, 3, 4.5, 10, 29, 100, 1000, 1e6]
        for t in [0.0, 1e-3, 0.3, 1.0, 2.0, 5.0, 31.6, 1e4]
        if stats.t.sf(t, df) > 1e-290
    ],
    "critical": [[df, float(stats.t.ppf(0.975, df))] for df in [1, 1.2, 2, 3, 4, 7.77, 30, 99, 1e5]],
    "samples": [sample(values) for values in losses],
    "paired": [test(a, b, True) for a, b in paired],
    "welch": [test(losses[i], losses[j], False) for i, j in [(0, 1), (0, 2), (2, 3), (4, 0), (1, 5)]],
    "holm": [[values, [float(p) for p in multipletests(values, method="holm")[1]]] for values in p_values],
}
print("{" + ",\n".join(f"{json.dumps(name)}: {json.dumps(table)}" for name, table in tables.items()) + "}")
assert math.isclose(stats.t.ppf(0.975, 2), 4.302652729911275)
