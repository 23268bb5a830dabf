"""Settings: schemas, the command line, help texts, and how a command ends.

Front doors: `command_line.parse`, `command.run_command`, `recipe` (the schemas of training),
`progress`, `first_line`.
"""
