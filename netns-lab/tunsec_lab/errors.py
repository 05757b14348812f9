"""What the lab raises when it cannot do what it was asked."""


class LabError(Exception):
    """What went wrong and where; `remedy` says what the user can do."""

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy

    def __str__(self) -> str:
        what = super().__str__()
        return f"{what}\n  remedy: {self.remedy}" if self.remedy else what
