"""Rules for datasets, and issues that violate them."""

from dataclasses import dataclass, field
from typing import Final, Literal

Severity = Literal["error", "warning"]

ERRORS: Final = {
    "unreadable": "an annotation file or an entry in it cannot be read",
    "empty_list": "a split has no images or no categories",
    "repeated_id": "an id or a class name is used twice",
    "missing_image": "an image is listed, but there is no such file",
    "ambiguous_image": "several files fit the name of an image",
    "corrupt_image": "a file is not an image",
    "large_image": "an image is larger than data.max_image_megapixels",
    "truncated_image": "an image is truncated or damaged inside",
    "size_differs": "the annotations give an image another size than its file has",
    "bad_box": "a box is not four finite numbers",
    "zero_box": "a box has no width or no height",
    "negative_box": "a box has a negative width or height",
    "fraction_box": "boxes are fractions of the image where pixels are meant",
    "outside_box": "a box lies completely outside its image",
    "unknown_category": "a box has a class that is not listed",
    "unknown_image": "a box belongs to an image that is not listed",
    "no_trainable_box": "the training or validation split has no box to train on",
    "class_not_trained": "a split lists a class that the training split does not list",
    "duplicate_across": "two splits share an image, byte for byte",
    "near_duplicate_across": "two splits share an image that was saved again or changed slightly",
    "group_across": "two splits share a group, such as a part, a lot or a camera",
}
"""Rules whose issues stop a run."""
WARNINGS: Final = {
    "missing_split": "the description names a test split that is not there",
    "crowd_box": "boxes marked as crowd regions, which are never trained on",
    "similar_classes": "classes whose names differ only in case, spaces or Unicode form",
    "many_boxes": "an image has more boxes than evaluation counts by default",
    "several_pages": "a file with several pages or frames, of which the first is used",
    "unlisted_image": "an image file that no split lists",
    "exif_rotation": "an image that its EXIF data rotates",
    "overhanging_box": "a box reaches beyond its image by more than a pixel",
    "repeated_annotation": "annotations share an id",
    "duplicate_box": "two boxes of a class at the same place",
    "small_box": "a box with a side under 4 px at the training size",
    "class_without_boxes": "a class without a box in a split",
    "duplicate_within": "an image is twice in a split, byte for byte",
    "near_duplicate_within": "an image is twice in a split, saved again or changed slightly",
}
"""Rules whose issues need a look."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Issue:
    """One violation of a rule."""

    rule: str
    """A key of `ERRORS` or `WARNINGS`."""
    split: str
    """Name of the split, such as `train`."""
    file: str
    """The image, or the annotation file if the issue is not about one image."""
    message: str
    """A sentence that names file and annotation, and what to do."""
    annotation: str | None = None
    """Id of the annotation in the file, or file and line; None if the issue is not about one annotation."""

    @property
    def severity(self) -> Severity:
        """Whether it stops a run."""
        return "error" if self.rule in ERRORS else "warning"


@dataclass(kw_only=True, slots=True)
class IssueLog:
    """Collects the issues of a split."""

    split: str
    issues: list[Issue] = field(default_factory=list)

    def add(self, rule: str, file: str, message: str, *, annotation: str | None = None) -> None:
        """Add an issue; see the fields of `Issue`."""
        self.issues.append(
            Issue(rule=rule, split=self.split, file=file, message=message, annotation=annotation)
        )
