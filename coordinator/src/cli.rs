//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Decides for all gateways of a deployment.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// Options that stand before or behind the command.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The configuration file, the same as the gateway's; else the one that `CONFIG_PATH` names, else config.yaml if
    /// it is there
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address to listen on, or where a running coordinator listens
    #[arg(short = 'H', long, global = true)]
    pub(crate) host: Option<String>,
    /// Port to listen on, or where a running coordinator listens
    #[arg(short, long, global = true)]
    pub(crate) port: Option<u16>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Run the coordinator (the default)
    Serve,
    /// Say whether the configuration is good, with every mistake that it has
    CheckConfig,
    /// Show the configuration in force, without secrets, and where each value comes from
    PrintConfig,
    /// Ask a running coordinator on this machine whether it is alive
    Healthcheck,
    /// Show the version
    Version,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Show who leads, and how far it is
    Status(Asking),
    /// Show every key: its state, what keeps it from work, and what of its quota is used
    Keys(Asking),
    /// Keep traffic away from a key for some time
    Block {
        #[command(flatten)]
        key: Chosen,
        /// For how long
        #[arg(short, long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=MAX_MINUTES))]
        minutes: u64,
    },
    /// End everything that keeps traffic away from a key for some time, its project's cooldowns included
    Unblock(Chosen),
    /// Keep traffic away from a key until it is enabled
    Disable(Chosen),
    /// Undo that, or what the upstream's refusals decided about a key
    Enable(Chosen),
    /// Ask the upstream now whether a key is valid, which costs no quota
    Probe(Chosen),
}

/// The longest block: a year. What is meant for longer is a disabled key.
pub(crate) const MAX_MINUTES: u64 = 365 * 24 * 60;

/// Where to ask, and how to show the answer.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct Asking {
    #[command(flatten)]
    pub(crate) at: At,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct Chosen {
    /// The key's id, as `coordinator keys` shows it
    #[arg(value_name = "KEY")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) at: At,
}

/// Where a running coordinator is.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct At {
    /// A running coordinator, such as `http://10.0.0.7:4807`; else the host and the port of the configuration
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
}
