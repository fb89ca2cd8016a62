"""The command novi-bridge: one module for each subcommand, and what they share."""
