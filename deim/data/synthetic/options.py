"""Options of the synthetic defect set."""

from dataclasses import dataclass

from deim.config.checks import below, check


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticOptions:
    """A generated defect set, written to `data.root` if that folder does not exist yet."""

    train_images: int = 300
    """Number of images of the training split."""
    val_images: int = 100
    """Number of images of the validation split."""
    test_images: int = 100
    """Number of images of the test split."""
    max_size_wh: tuple[int, int] = (1650, 1350)
    """Maximum width and height of an image in pixels, each at least 96."""
    seed: int = 0
    """Seed of the images, at least 0; the same seed gives the same files."""

    def __post_init__(self) -> None:
        check(
            [
                *below(1, train_images=self.train_images, val_images=self.val_images),
                *below(0, test_images=self.test_images, seed=self.seed),
                (
                    min(self.max_size_wh) < 96,
                    f"max_size_wh: got {list(self.max_size_wh)}, each needs at least 96",
                ),
            ]
        )
