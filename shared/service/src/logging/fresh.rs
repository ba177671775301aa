//! Filters whose decisions are made anew for each span and event.

use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// A filter that never says "always" of a callsite.
///
/// The filters of layers pass their decisions on by way of a cell of the thread, and are not asked about what all of
/// them let through always. What is left in the cell then is the answer to somebody who asked whether something is
/// enabled (`log_enabled!`, as the client of Redis does) and had nothing to say: the next span or event would be lost.
/// Source: tracing issue 2519.
#[derive(Debug)]
pub(crate) struct Fresh<F>(pub(crate) F);

impl<S: Subscriber, F: Filter<S>> Filter<S> for Fresh<F> {
    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        let interest = self.0.callsite_enabled(metadata);
        if interest.is_always() { Interest::sometimes() } else { interest }
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        self.0.enabled(metadata, context)
    }

    fn event_enabled(&self, event: &Event<'_>, context: &Context<'_, S>) -> bool {
        self.0.event_enabled(event, context)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.0.max_level_hint()
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.0.on_new_span(attributes, id, context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        self.0.on_record(id, values, context);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.0.on_enter(id, context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.0.on_exit(id, context);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.0.on_close(id, context);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::sync::{Arc, Mutex};

    use tracing::dispatcher::Dispatch;
    use tracing_subscriber::filter::{LevelFilter, filter_fn};
    use tracing_subscriber::layer::{Context, SubscriberExt as _};
    use tracing_subscriber::{Layer, Registry};

    use super::*;

    /// Notes the spans that it sees.
    struct Seen(Arc<Mutex<Vec<&'static str>>>);

    impl<S: Subscriber> Layer<S> for Seen {
        fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
            self.0.lock().unwrap().push(attributes.metadata().name());
        }
    }

    #[test]
    fn a_question_that_nothing_follows_loses_no_span() {
        let (seen, logged) = (Arc::default(), Arc::default());
        let refuses = Arc::new(AtomicBool::new(false));
        let asked = refuses.clone();
        let traced = Seen(Arc::clone(&seen)).with_filter(Fresh(filter_fn(move |_| !asked.load(Relaxed))));
        let logs = Seen(Arc::clone(&logged)).with_filter(Fresh(LevelFilter::INFO));
        let subscriber = Dispatch::new(Registry::default().with(traced).with(logs));
        tracing::dispatcher::with_default(&subscriber, || {
            let span = || tracing::info_span!("step");
            let first = span();
            refuses.store(true, Relaxed);
            subscriber.enabled(first.metadata().expect("what a span is"));
            refuses.store(false, Relaxed);
            drop(span());
        });
        assert_eq!(*seen.lock().unwrap(), ["step"; 2]);
        assert_eq!(*logged.lock().unwrap(), ["step"; 2]);
    }
}
