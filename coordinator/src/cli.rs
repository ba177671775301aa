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
    /// See what is wrong and who is told, and keep messages back
    #[command(subcommand)]
    Alerts(Alerts),
}

/// About alerts.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Alerts {
    /// Show what is wrong now, what is silenced, and what could not be delivered
    List(Asking),
    /// Show what was wrong and is over
    History(Asking),
    /// Tell nobody of some alerts for a while
    Silence {
        /// What they have in common, such as `rule=pool_low` or `model=gemini-2.5-pro`; all of them
        #[arg(required = true, value_name = "LABEL=VALUE", value_parser = condition)]
        of: Vec<String>,
        /// Why
        #[arg(long)]
        reason: String,
        /// Who wants it
        #[arg(long, env = "USER", default_value = "")]
        author: String,
        /// For how long
        #[arg(short, long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=MAX_MINUTES))]
        minutes: u64,
        #[command(flatten)]
        at: At,
    },
    /// End a silence
    Unsilence {
        /// Its number, as `coordinator alerts list` shows it
        number: u64,
        #[command(flatten)]
        at: At,
    },
    /// Send a message to every receiver, to see whether it arrives
    Test {
        /// Only to this one
        #[arg(long, value_name = "NAME")]
        receiver: Option<String>,
        #[command(flatten)]
        at: At,
    },
}

fn condition(text: &str) -> Result<String, String> {
    if text.split_once('=').is_some_and(|(name, _)| !name.is_empty()) && !text.contains(',') {
        Ok(text.to_owned())
    } else {
        Err("give a label and its value, such as rule=pool_low".to_owned())
    }
}

/// The longest block: that of a silence. What is meant for longer is a disabled key.
pub(crate) const MAX_MINUTES: u64 = coordinator::alerts::console::MAX_MINUTES;

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
