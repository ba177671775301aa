//! What a model last said before its breaker opened: while it is open, clients get the model's own error.

use std::collections::HashMap;

use keyfleet_core::id::Model;
use parking_lot::Mutex;

use crate::error::Fault;

/// More models than this are not down at one time.
const MAX: usize = 64;

/// Errors by lane.
#[derive(Default)]
pub(crate) struct LastWords(Mutex<HashMap<Model, Fault>>);

impl LastWords {
    pub(crate) fn keep(&self, lane: &Model, fault: &Fault) {
        let mut words = self.0.lock();
        if words.len() >= MAX && !words.contains_key(lane) {
            words.clear();
        }
        words.insert(lane.clone(), fault.clone());
    }

    pub(crate) fn of(&self, lane: &Model) -> Option<Fault> {
        self.0.lock().get(lane).cloned()
    }
}
