//! The contract, in memory and with a file.

use super::scenarios::{KEEP, World};
use keyfleet_fabric::store::memory::MemoryStore;
use std::sync::Arc;

async fn memory() -> World {
    let store = Arc::new(MemoryStore::new(KEEP));
    World { stores: [store.clone(), store], _life: Box::new(()) }
}

async fn file() -> World {
    let folder = tempfile::tempdir().unwrap();
    let opened = MemoryStore::open(&folder.path().join("state.json"), "boot").unwrap();
    let store = Arc::new(opened.store.keeping(KEEP));
    World { stores: [store.clone(), store], _life: Box::new(folder) }
}

mod without_file {
    crate::store::scenarios::suite!(super::memory);
}

mod with_file {
    crate::store::scenarios::suite!(super::file);
}
