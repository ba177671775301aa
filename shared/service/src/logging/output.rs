//! The queue of what is to be written, and the thread that writes it.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Line;

/// What may wait while the reader of our output is slow. Above it everything new is dropped and counted: a log must not
/// hold up requests, and memory must not hold the log.
const MAX_BYTES: usize = 2 << 20;
/// With so much waiting, it is written at once.
const FULL: usize = MAX_BYTES / 8;
/// What a line of a request takes until it is put into words, roughly.
const LINE_BYTES: usize = 512;
/// How long lines of requests wait for others: one write for all costs less, and so does waking nobody.
const LINGER: Duration = Duration::from_millis(50);
/// After so many looks at an empty queue the thread waits to be woken.
const LOOKS: u32 = 20;
/// What the buffer keeps between two writes.
const BUFFER_BYTES: usize = 64 << 10;

/// What waits to be written.
pub(super) struct Output {
    queue: Mutex<Queue>,
    /// For the thread that writes.
    wake: Condvar,
    /// For those who wait until it has.
    written: Condvar,
    /// Lines are not kept waiting for others: somebody watches them come.
    at_once: bool,
}

#[derive(Default)]
struct Queue {
    entries: Vec<Entry>,
    bytes: usize,
    /// Entries that were ever taken, and how many of them are done with.
    taken: u64,
    done: u64,
    dropped: u64,
    /// The thread waits to be woken.
    asleep: bool,
    /// It is to write now.
    urgent: bool,
}

enum Entry {
    Event(Box<[u8]>),
    Line(Box<dyn Line>),
}

impl Output {
    pub(super) fn new(at_once: bool) -> Self {
        Self { queue: Mutex::default(), wake: Condvar::new(), written: Condvar::new(), at_once }
    }

    /// Takes an event with its line break; it is written at once.
    pub(super) fn event(&self, text: &[u8]) {
        self.take(Entry::Event(text.into()), text.len(), true);
    }

    pub(super) fn line(&self, line: Box<dyn Line>) {
        self.take(Entry::Line(line), LINE_BYTES, self.at_once);
    }

    fn take(&self, entry: Entry, bytes: usize, urgent: bool) {
        let mut queue = self.queue.lock();
        if queue.bytes + bytes > MAX_BYTES {
            queue.dropped += 1;
            return;
        }
        queue.entries.push(entry);
        queue.bytes += bytes;
        queue.taken += 1;
        let urgent = urgent || queue.bytes >= FULL;
        let wakes = queue.asleep || urgent && !queue.urgent;
        queue.urgent |= urgent;
        queue.asleep = false;
        drop(queue);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Waits until everything that was taken before is done with, at most so long.
    pub(super) fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut queue = self.queue.lock();
        let last = queue.taken;
        queue.urgent = true;
        self.wake.notify_one();
        while queue.done < last && !self.written.wait_until(&mut queue, until).timed_out() {}
    }

    pub(super) fn dropped(&self) -> u64 {
        self.queue.lock().dropped
    }

    /// Waits for something to write.
    fn next(&self, entries: &mut Vec<Entry>) {
        let mut queue = self.queue.lock();
        let mut looks = 0;
        while !queue.urgent && (queue.entries.is_empty() || looks == 0) {
            if looks < LOOKS {
                self.wake.wait_for(&mut queue, LINGER);
                looks += 1;
            } else {
                queue.asleep = true;
                self.wake.wait(&mut queue);
                // What woke us is the first of several, perhaps.
                looks = 0;
            }
        }
        queue.urgent = false;
        queue.asleep = false;
        queue.bytes = 0;
        std::mem::swap(&mut queue.entries, entries);
    }

    fn done(&self, entries: usize, lost: bool) {
        let mut queue = self.queue.lock();
        queue.done += entries as u64;
        queue.dropped += if lost { entries as u64 } else { 0 };
        self.written.notify_all();
    }

    fn write_to(&self, mut writer: impl Write) {
        let mut entries = Vec::new();
        let mut text = Vec::with_capacity(BUFFER_BYTES);
        loop {
            self.next(&mut entries);
            let count = entries.len();
            for entry in entries.drain(..) {
                match entry {
                    Entry::Event(event) => text.extend_from_slice(&event),
                    Entry::Line(line) => {
                        line.write(&mut text);
                        text.push(b'\n');
                    }
                }
            }
            let lost = writer.write_all(&text).and_then(|()| writer.flush()).is_err();
            text.clear();
            text.shrink_to(BUFFER_BYTES);
            self.done(count, lost);
        }
    }
}

/// Starts the thread that writes. It ends with the process.
pub(super) fn start(output: &Arc<Output>, writer: Box<dyn Write + Send>) -> io::Result<()> {
    let output = output.clone();
    std::thread::Builder::new().name("log".to_owned()).spawn(move || output.write_to(writer)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    struct Text(String);

    impl Line for Text {
        fn write(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(self.0.as_bytes());
        }
    }

    fn line(output: &Output, text: &str) {
        output.line(Box::new(Text(text.to_owned())));
    }

    /// Passes every write on by itself.
    struct Writes(mpsc::Sender<String>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn running(at_once: bool) -> (Arc<Output>, mpsc::Receiver<String>) {
        let (sender, writes) = mpsc::channel();
        let output = Arc::new(Output::new(at_once));
        start(&output, Box::new(Writes(sender))).unwrap();
        (output, writes)
    }

    #[test]
    fn lines_go_out_together_and_events_take_them_along() {
        let (sender, writes) = mpsc::channel();
        let output = Arc::new(Output::new(false));
        for text in ["a", "b"] {
            line(&output, text);
        }
        output.event(b"event\n");
        start(&output, Box::new(Writes(sender))).unwrap();
        assert_eq!(writes.recv_timeout(SOON).unwrap(), "a\nb\nevent\n");
    }

    #[test]
    fn after_a_long_silence_a_line_is_written_as_well() {
        let (output, writes) = running(false);
        let asleep = Instant::now() + SOON;
        while !output.queue.lock().asleep {
            assert!(Instant::now() < asleep, "an idle process looks for ever");
            std::thread::yield_now();
        }
        line(&output, "a");
        assert_eq!(writes.recv_timeout(SOON).unwrap(), "a\n");
    }

    #[test]
    fn a_flush_waits_for_what_came_before_it() {
        let (output, writes) = running(false);
        line(&output, "bye");
        output.flush(SOON);
        assert_eq!(writes.try_recv().unwrap(), "bye\n");
    }

    /// Never comes back, as a pipe that nobody reads.
    struct Stuck(mpsc::Sender<()>);

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(());
            loop {
                std::thread::park();
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_neither_time_nor_memory() {
        let (say_stuck, stuck) = mpsc::channel();
        let output = Arc::new(Output::new(false));
        start(&output, Box::new(Stuck(say_stuck))).unwrap();
        output.event(b"x");
        stuck.recv_timeout(SOON).unwrap();
        let event = [b'y'; 1_000];
        for _ in 0..2 * MAX_BYTES / event.len() {
            output.event(&event);
            line(&output, "z");
        }
        assert!(output.queue.lock().bytes <= MAX_BYTES);
        assert!(output.dropped() > 1_000);
        output.flush(Duration::from_millis(1));
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_nobody_can_read_any_more_counts_as_dropped() {
        let output = Arc::new(Output::new(false));
        start(&output, Box::new(Closed)).unwrap();
        line(&output, "a");
        line(&output, "b");
        output.flush(SOON);
        assert_eq!(output.dropped(), 2);
    }
}
