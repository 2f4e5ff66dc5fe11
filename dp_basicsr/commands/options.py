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
    parser.add_output(type=Path, default=Path("options"), help="folder to copy into, or the name of a copy")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    args = parser.parse_args(argv)
    with exit_on_user_error():
        # As for train: with or without .yml.
        files = [SHIPPED / Path(option_file(f"options/{name}")).name for name in args.names]
        missing = [name for name, file in zip(args.names, files, strict=True) if not file.is_file()]
        if missing:
            names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yml")))
            raise UserError(f"expected some of {names}, got {', '.join(missing)}")
        is_named = args.output.suffix in (".yml", ".yaml") and not args.output.is_dir()
        if is_named and len(files) > 1:
            raise UserError(f"--output {args.output}: expected a folder for {len(files)} files, got the name of one")
        targets = [args.output if is_named else args.output / file.name for file in files]
        refuse_existing(targets, overwrite=args.overwrite)
        for file, target in zip(files, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            print(f"wrote {target}")
        # Editors check the copied files against the schema beside them.
        if files:
            shutil.copyfile(SHIPPED / "schema.json", targets[0].parent / "schema.json")
            return 0
        for file in sorted(SHIPPED.glob("*.yml")):
            lines = file.read_text(encoding="utf-8").splitlines()
            # The first comment says what the file is for; the line of the schema is for editors.
            summary = next(line.lstrip("# ") for line in lines if line.startswith("# ") and "$schema" not in line)
            print(f"{file.stem:26} {summary.partition('. ')[0]}")
    return 0
