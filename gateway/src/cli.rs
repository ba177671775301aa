//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::smoke;

/// One dependable endpoint out of many Gemini API keys.
#[derive(Debug, Parser)]
#[command(name = "gateway", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// Options that stand before or behind the command.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The configuration file; else the one that `CONFIG_PATH` names, else config.yaml if it is there
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address to listen on
    #[arg(short = 'H', long, global = true)]
    pub(crate) host: Option<String>,
    /// Port to listen on
    #[arg(short, long, global = true)]
    pub(crate) port: Option<u16>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Run the gateway (the default)
    Serve,
    /// Say whether the configuration is good, with every mistake that it has
    CheckConfig,
    /// Show the configuration in force, without secrets, and where each value comes from
    PrintConfig,
    /// Ask a running gateway on this machine whether it is alive
    Healthcheck,
    /// Check a running deployment from outside, as its clients use it
    Smoke(smoke::Options),
    /// Show the version, and the commit that it was built from
    Version {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}
