//! Events through `tracing`, and one line per request through [`AccessLog`]. Both go to standard output.
//!
//! Nothing in here looks into what it writes: prompts and keys must never be passed in.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;

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
}

/// Sends the events of this process to standard output. `RUST_LOG` chooses which; without it, `info` and above.
pub fn init(format: LogFormat) -> Result<(), LogError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.trim().is_empty() => EnvFilter::try_new(text)?,
        _ => EnvFilter::new("info"),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stdout);
    let done = if format.is_json() {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        builder.with_ansi(io::stdout().is_terminal()).try_init()
    };
    done.map_err(|_| LogError::Twice)
}

/// What the buffers keep between two flushes.
const BUFFER_BYTES: usize = 32 << 10;

/// What waits while the reader of our output is slow. Above it lines are dropped and counted: a log must not hold up
/// requests, and memory must not hold the log.
const MAX_BYTES: usize = 1 << 20;

/// A sink for one prepared line per request: most calls only append to a buffer.
pub struct AccessLog {
    lines: Mutex<Vec<u8>>,
    out: Mutex<Out>,
    dropped: AtomicU64,
    at_once: bool,
}

struct Out {
    writer: Box<dyn Write + Send>,
    /// Swapped with the lines, so that neither buffer is allocated again.
    spare: Vec<u8>,
}

impl AccessLog {
    /// To standard output: line by line on a terminal, else whenever somebody calls [`Self::flush`], which may
    /// have to wait for the reader.
    pub fn stdout() -> Self {
        Self::new(Box::new(io::stdout()), io::stdout().is_terminal())
    }

    fn new(writer: Box<dyn Write + Send>, at_once: bool) -> Self {
        let out = Out { writer, spare: Vec::with_capacity(BUFFER_BYTES) };
        let lines = Vec::with_capacity(BUFFER_BYTES);
        Self { lines: Mutex::new(lines), out: Mutex::new(out), dropped: AtomicU64::new(0), at_once }
    }

    /// Takes one line; the line break is added.
    pub fn write(&self, line: &[u8]) {
        let at_once = {
            let mut lines = self.lines.lock();
            if lines.len() + line.len() >= MAX_BYTES {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
            lines.extend_from_slice(line);
            lines.push(b'\n');
            self.at_once
        };
        if at_once {
            self.hand_over();
        }
    }

    /// Hands everything that was written before to the system.
    pub fn flush(&self) {
        let mut out = self.out.lock();
        self.drain(&mut out);
    }

    /// How many lines were dropped, because the reader of our output was too slow or is gone.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// At most one caller waits for a slow reader; the others leave their lines in the buffer.
    fn hand_over(&self) {
        if let Some(mut out) = self.out.try_lock() {
            self.drain(&mut out);
        }
    }

    fn drain(&self, out: &mut Out) {
        let Out { writer, spare } = out;
        std::mem::swap(&mut *self.lines.lock(), spare);
        if spare.is_empty() {
            return;
        }
        if writer.write_all(spare).and_then(|()| writer.flush()).is_err() {
            let lost = spare.split_inclusive(|&byte| byte == b'\n').count();
            self.dropped.fetch_add(lost as u64, Ordering::Relaxed);
        }
        spare.clear();
        spare.shrink_to(BUFFER_BYTES);
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessLog").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::*;

    /// Remembers every write by itself.
    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_go_out_together_on_flush() {
        let writes = Writes::default();
        let log = AccessLog::new(Box::new(writes.clone()), false);
        let line = [b'x'; 999];
        for _ in 0..100 {
            log.write(&line);
        }
        assert!(writes.0.lock().is_empty(), "whoever writes a line does not wait for its reader");
        log.flush();
        assert_eq!(writes.0.lock().iter().map(Vec::len).collect::<Vec<_>>(), [100_000]);
        log.flush();
        assert_eq!(writes.0.lock().len(), 1, "nothing to write is not written");
    }

    #[test]
    fn a_terminal_gets_each_line_at_once() {
        let writes = Writes::default();
        let log = AccessLog::new(Box::new(writes.clone()), true);
        log.write(b"a");
        log.write(b"b");
        assert_eq!(*writes.0.lock(), [b"a\n".to_vec(), b"b\n".to_vec()]);
    }

    #[test]
    fn the_last_lines_survive_the_end() {
        let writes = Writes::default();
        let log = AccessLog::new(Box::new(writes.clone()), false);
        log.write(b"bye");
        drop(log);
        assert_eq!(*writes.0.lock(), [b"bye\n".to_vec()]);
    }

    /// Says that it is stuck, then waits until it is let go.
    struct Stuck(mpsc::Sender<()>, mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_neither_time_nor_memory() {
        let (say_stuck, stuck) = mpsc::channel();
        let (let_go, go) = mpsc::channel();
        let log = Arc::new(AccessLog::new(Box::new(Stuck(say_stuck, go)), false));
        let victim = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                log.write(b"x");
                log.flush();
            }
        });
        stuck.recv().unwrap();
        for _ in 0..2 * MAX_BYTES / 1000 {
            log.write(&[b'y'; 999]);
        }
        assert!(log.lines.lock().len() <= MAX_BYTES);
        assert!(log.dropped() > 0);
        for _ in 0..2 {
            let_go.send(()).unwrap();
        }
        victim.join().unwrap();
        log.flush();
    }
}
