//! Clients that go on asking, one request at a time each, through a load balancer that is not fair.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::Client;

/// As many requests are remembered one by one.
const MOST_ODD: usize = 20;

/// The gateways that a load balancer sends clients to. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Front(Arc<Mutex<Vec<Client>>>);

impl Front {
    pub(super) fn set(&self, clients: Vec<Client>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = clients;
    }

    /// The first gateway gets twice as much as the second, three times as much as the third, and so on.
    pub fn pick(&self, random: &mut fastrand::Rng) -> Client {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shares: Vec<f64> =
            (1..=u32::try_from(clients.len()).unwrap_or(1)).map(|n| 1.0 / f64::from(n)).collect();
        let mut at = random.f64() * shares.iter().sum::<f64>();
        let chosen = shares.iter().position(|share| {
            at -= share;
            at < 0.0
        });
        clients[chosen.unwrap_or_default()].clone()
    }
}

/// What became of requests.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// How many ended how: a status, `no connection`, `no answer`, `broken answer`.
    pub ends: BTreeMap<String, u64>,
    /// The slowest answer.
    pub slowest: Duration,
    /// The first that were not answered with 200: when they ended, since the clients began, and how.
    pub odd: Vec<(Duration, String)>,
}

impl Tally {
    /// How many ended so.
    pub fn of(&self, end: &str) -> u64 {
        self.ends.get(end).copied().unwrap_or_default()
    }

    /// All that were neither answered nor refused for want of quota.
    pub fn failures(&self) -> BTreeMap<&str, u64> {
        let failures = self.ends.iter().filter(|(end, _)| !["200", "429"].contains(&end.as_str()));
        failures.map(|(end, n)| (end.as_str(), *n)).collect()
    }

    fn add(&mut self, other: &Self) {
        for (end, n) in &other.ends {
            *self.ends.entry(end.clone()).or_default() += n;
        }
        self.slowest = self.slowest.max(other.slowest);
        self.odd.extend(other.odd.iter().take(MOST_ODD - self.odd.len()).cloned());
    }
}

/// Running clients.
#[derive(Debug)]
pub struct Crowd {
    stop: watch::Sender<bool>,
    tally: Arc<Mutex<Tally>>,
    clients: JoinSet<()>,
}

impl Crowd {
    /// `size` clients, each of which asks `model` and then rests for about `pause`.
    pub fn start(front: &Front, size: u64, pause: Duration, model: &str, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut clients = JoinSet::new();
        for client in 0..size {
            let random = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(client));
            let (front, model, tally) = (front.clone(), model.to_owned(), tally.clone());
            clients.spawn(live(front, model, random, pause, stopped.clone(), tally));
        }
        Self { stop, tally, clients }
    }

    /// What became of their requests so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets every client end its request, and says what became of all.
    pub async fn stop(mut self) -> Tally {
        self.stop.send_replace(true);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client lives until it is stopped");
        }
        self.tally()
    }
}

async fn live(
    front: Front,
    model: String,
    mut random: fastrand::Rng,
    pause: Duration,
    mut stop: watch::Receiver<bool>,
    tally: Arc<Mutex<Tally>>,
) {
    let start = Instant::now();
    loop {
        // From a half to one and a half of it.
        let rest = pause.mul_f64(0.5 + random.f64());
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(rest) => {}
        }
        let began = Instant::now();
        let end = match front.pick(&mut random).chat(&model, false).await {
            Ok(answer) if !answer.whole => "broken answer".to_owned(),
            Ok(answer) => answer.status.to_string(),
            Err(error) if error.is_connect() => "no connection".to_owned(),
            Err(_) => "no answer".to_owned(),
        };
        let odd = if end == "200" { Vec::new() } else { vec![(start.elapsed(), end.clone())] };
        let one = Tally { ends: BTreeMap::from([(end, 1)]), slowest: began.elapsed(), odd };
        tally.lock().unwrap_or_else(PoisonError::into_inner).add(&one);
    }
}
