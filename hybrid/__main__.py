"""`python -m hybrid --app wsgi doctor https://example.com`: the commands of `flask hybrid`."""

from flask.cli import FlaskGroup

from hybrid.cli import COMMANDS, HELP

main = FlaskGroup(name="python -m hybrid", help=HELP, add_default_commands=False)

if __name__ == "__main__":
    for command in COMMANDS:
        main.add_command(command)
    main(prog_name="python -m hybrid")
