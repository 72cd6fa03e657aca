"""The quickstart runs from top to bottom, at reduced settings."""

import pytest
import torch

import quickstart


def test_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["quickstart.py", "--quick", "--output", str(tmp_path)])
    quickstart.main()
    printed = capsys.readouterr().out
    for name in ("plain", "EquiTune", "EquiZero", "LambdaEquiTune"):
        assert name in printed
    assert "Why the plain average does worse than the selection" in printed
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_the_quickstart_notices_an_inconsistent_wrapper():
    measured = {"EquiTune": quickstart.Measured(upright=1.0, rotated=1.0, changed=0.01, error=0.0)}
    with pytest.raises(SystemExit, match=r"changes 1\.00% of the predictions"):
        quickstart.check(measured)


def test_measure_counts_changes():
    class TopHalf(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x[..., :2, :].sum((1, 2, 3)), x[..., 2:, :].sum((1, 2, 3))], dim=1)

    images = torch.zeros(2, 1, 4, 4)
    images[:, :, 0] = 1
    measured = quickstart.measure(TopHalf(), images, torch.tensor([0, 1]))
    assert (measured.upright, measured.changed) == (0.5, 1.0)
