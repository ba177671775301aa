//! A choice allocates nothing, in none of the ways to choose, however many keys are dead.

use std::sync::Arc;

use keyfleet_core::gate::{Breaker, Gate};
use keyfleet_core::select::{FULL_SHARE, Gates, Lane, Seat, Want, name_hash};
use keyfleet_core::time::Mono;

fn lane(keys: u32) -> Lane {
    let (model, egress) = (Arc::new(Breaker::default()), Arc::new(Breaker::default()));
    let seat = |key: u32| Seat {
        key,
        project: key / 2,
        home: name_hash(&format!("p{}", key / 2)),
        share: FULL_SHARE,
        dial: Arc::default(),
        gates: Gates {
            key: Arc::default(),
            key_model: Gate::default(),
            bucket: Arc::default(),
            project: Arc::default(),
            model: model.clone(),
            egress: egress.clone(),
            spent: Arc::default(),
        },
    };
    Lane::new(vec![(0..keys).map(seat).collect()], 7)
}

#[test]
fn choosing_allocates_nothing() {
    let lane = lane(1_500);
    let now = Mono::from_ms(1);
    for seat in lane.seats().iter().skip(30) {
        seat.gates.key.close(Mono::FOREVER, None);
    }
    let wants = |n: u64| {
        let project = u32::try_from(n % 15).unwrap_or_default();
        [
            Want::default(),
            Want { project: Some(project), ..Want::default() },
            Want { session: Some(n), ..Want::default() },
            Want { session: Some(n), stores: true, bytes: Some(n), ..Want::default() },
        ]
    };
    let counted = allocation_counter::measure(|| {
        for want in (0..10_000).flat_map(wants) {
            assert!(lane.select(&want, 0, now).is_ok());
        }
        for seat in lane.seats() {
            seat.gates.key.close(Mono::FOREVER, None);
        }
        for want in wants(1) {
            assert!(lane.select(&want, 0, now).is_err());
        }
    });
    assert_eq!(counted.count_total, 0);
}
