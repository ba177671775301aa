//! Events through `tracing`, and one line per request through [`AccessLog`]. Both go to standard output, by way of one
//! bounded queue and a thread that writes: whoever has something to say never waits for its reader.
//!
//! Nothing in here looks into what it writes: prompts and keys must never be passed in.

pub(crate) mod fresh;
mod output;

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

use self::fresh::Fresh;
use self::output::Output;
use crate::telemetry;

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `Human` on a terminal, else `Json`.
    #[default]
    Auto,
    /// One JSON object per line.
    Json,
    /// For eyes.
    Human,
}

impl LogFormat {
    /// Whether lines are JSON.
    pub fn is_json(self) -> bool {
        match self {
            Self::Auto => !io::stdout().is_terminal(),
            Self::Json => true,
            Self::Human => false,
        }
    }
}

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `RUST_LOG` is not a filter.
    #[error("RUST_LOG: {0}; give a level such as `info`, or directives such as `gateway=debug,info`")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Somebody set up logs before.
    #[error("logs are set up already")]
    Twice,
    /// The system gives no thread.
    #[error("there is no thread to write logs with: {0}")]
    NoThread(#[source] io::Error),
}

/// How long the end of the process waits for the reader of its output.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The output of this process.
static OUTPUT: OnceLock<Arc<Output>> = OnceLock::new();

fn output() -> &'static Arc<Output> {
    OUTPUT.get_or_init(|| Arc::new(Output::new(io::stdout().is_terminal())))
}

/// Sends the events of this process to standard output. `RUST_LOG` chooses which; without it, `info` and above, and less of
/// what others wrote.
pub fn init(format: LogFormat) -> Result<(), LogError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.trim().is_empty() => EnvFilter::try_new(text)?,
        // The client of NATS says each step of each of its connections; what follows from one that is away, we say.
        _ => EnvFilter::new("info,async_nats=warn"),
    };
    let events = tracing_subscriber::fmt::layer().with_writer(Events(output()));
    let events: Box<dyn Layer<_> + Send + Sync> = if format.is_json() {
        events.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else {
        events.with_ansi(io::stdout().is_terminal()).boxed()
    };
    // What the logs leave out may still be traced: the filter is theirs alone.
    let events = events.with_filter(Fresh(filter));
    let spans = telemetry::layer();
    let done = tracing_subscriber::registry().with(spans).with(events).try_init();
    done.map_err(|_| LogError::Twice)?;
    output::start(output(), Box::new(io::stdout())).map_err(LogError::NoThread)
}

/// Waits until what has been said so far is written, but not for a reader that has stopped. For the end of a process:
/// what is still in the queue then is lost.
pub fn flush() {
    if let Some(output) = OUTPUT.get() {
        output.flush(LAST_WORDS);
    }
}

/// Where `tracing` leaves its events.
struct Events(&'static Output);

impl<'a> MakeWriter<'a> for Events {
    type Writer = EventWriter<'a>;

    fn make_writer(&'a self) -> EventWriter<'a> {
        EventWriter(self.0)
    }
}

/// Takes one event, which comes in one write.
struct EventWriter<'a>(&'a Output);

impl Write for EventWriter<'_> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.event(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line that is put into words on the thread that writes it.
pub trait Line: Send {
    /// Appends it, without the line break.
    fn write(&self, out: &mut Vec<u8>);
}

/// A sink for one line per request: most calls only append to a queue.
#[derive(Clone)]
pub struct AccessLog {
    output: Arc<Output>,
}

impl AccessLog {
    /// To standard output: line by line on a terminal, else some together a moment later. Nothing is written before
    /// [`init`].
    pub fn stdout() -> Self {
        Self { output: output().clone() }
    }

    /// Takes one line.
    pub fn write(&self, line: Box<dyn Line>) {
        self.output.line(line);
    }

    /// How many lines and events were dropped, because the reader of our output was too slow or is gone.
    pub fn dropped(&self) -> u64 {
        self.output.dropped()
    }
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessLog").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}
