import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from tfprune.errors import UsageError
from tfprune.experiments.run import main
from tfprune.experiments.setup.flags import define_flags
from tfprune.experiments.setup.resolving import settings_from_flags
from tfprune.experiments.setup.shards import take_shard


def grid(*argv):
    values = flags.FlagValues()
    define_flags(values)
    values(["run", "--dry_run", *argv])
    return settings_from_flags(values)


SWEEP = grid("--method=l1_norm,uniform", "--ratio=.3,.5", "--seeds=3", "--dataset=fashion_mini,synthetic")
ROUNDS = grid("--method=magnitude", "--ratio=.2", "--rounds=3", "--seeds=3", "--regimes=winning_ticket")


def runs(settings):
    return [(own.dataset, own.method, own.ratio, own.round, seed) for own in settings for seed in own.seeds]


@given(st.sampled_from([SWEEP, ROUNDS]), st.integers(1, 30))
def test_the_parts_are_the_whole_each_run_once_and_of_even_size(whole, parts):
    shards = [runs(take_shard(whole, f"{number}/{parts}")) for number in range(parts)]
    assert sorted(run for shard in shards for run in shard) == sorted(runs(whole))
    units = [len({(*run[:3], run[4]) for run in shard}) for shard in shards]
    assert max(units) - min(units) <= 1


def test_runs_of_one_large_network_are_neighbours():
    for number in range(6):  # two data sets, three seeds
        assert len({(dataset, seed) for dataset, *_, seed in runs(take_shard(SWEEP, f"{number}/6"))}) == 1


@given(st.integers(1, 5))
def test_rounds_stay_together(parts):
    for number in range(parts):
        own = runs(take_shard(ROUNDS, f"{number}/{parts}"))
        assert {(turn, seed) for *_, turn, seed in own} == {(turn, seed) for *_, seed in own for turn in (1, 2, 3)}


def test_the_part_with_the_first_seed_exports():
    whole = grid("--seeds=4,2")
    parts = [take_shard(whole, f"{number}/2")[0] for number in range(2)]
    assert {part.seeds: part.export for part in parts} == {(4,): True, (2,): False}


def test_more_parts_than_runs_leave_some_with_nothing():
    assert [len(take_shard(grid("--seeds=2"), f"{number}/3")) for number in range(3)].count(0) == 1


@pytest.mark.parametrize("shard", ["2/2", "3/2", "-1/2", "0/0", "1", "a/b", "0/2/3", "", "0.5/2"])
def test_a_part_that_is_none(shard):
    with pytest.raises(UsageError, match=rf"--shard={shard} must be i/n: .* Try 0/2"):
        take_shard(SWEEP, shard)


def test_the_header_of_a_part_tells_the_seeds_of_all_its_settings(tmp_path, capsys):
    argv = ["--smoke", "--model=vgg11", "--width=.1", "--method=l1_norm", "--ratio=.3,.6", "--seeds=3", "--dry_run"]
    assert main([*argv, "--shard=0/2", f"--workdir={tmp_path}"]) == 0
    assert "seeds 0, 1; 1 epoch of the large network" in capsys.readouterr().out
