"""List the shipped option files, or copy some of them to change them.

%(prog)s
%(prog)s train_esrgan_dp finetune_dp -o my_options
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from dp_basicsr.errors import UserError, exit_on_user_error
from dp_basicsr.utils.arguments import SHIPPED, Parser, option_file
from dp_basicsr.utils.staging import refuse_existing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = Parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to copy (default: list all)")
    parser.add_output(type=Path, default=Path("options"), help="folder to copy into")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    args = parser.parse_args(argv)
    with exit_on_user_error():
        # As for train: with or without .yml.
        files = [SHIPPED / Path(option_file(f"options/{name}")).name for name in args.names]
        missing = [name for name, file in zip(args.names, files, strict=True) if not file.is_file()]
        if missing:
            names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yml")))
            raise UserError(f"expected some of {names}, got {', '.join(missing)}")
        refuse_existing([args.output / file.name for file in files], overwrite=args.overwrite)
        for file in files:
            args.output.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, args.output / file.name)
            print(f"wrote {args.output / file.name}")
        # Editors check the copied files against the schema beside them.
        if files:
            shutil.copyfile(SHIPPED / "schema.json", args.output / "schema.json")
            return 0
        for file in sorted(SHIPPED.glob("*.yml")):
            lines = file.read_text(encoding="utf-8").splitlines()
            # The first comment says what the file is for; the line of the schema is for editors.
            summary = next(line.lstrip("# ") for line in lines if line.startswith("# ") and "$schema" not in line)
            print(f"{file.stem:26} {summary.partition('. ')[0]}")
    return 0
