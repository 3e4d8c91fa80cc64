"""How the released checkpoint was made and measured; not part of the installed package."""

__all__: list[str] = []
