"""The page that says what a stranger's data set may try; its promises name tests of this folder."""

PAGE = "tasks.md"
