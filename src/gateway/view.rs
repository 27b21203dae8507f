//! A worker's own handles to what all workers share.
//!
//! A request holds on to its configuration and its route while a reload may replace them. Were these reference counts shared, each
//! request would write a few cache lines that every other worker writes as well, which is what stops a proxy from growing with its
//! cores. So each worker counts for itself.

use std::ops::Deref;
use std::sync::Arc;

use crate::gateway::route::Route;
use crate::gateway::snapshot::Snapshot;

/// One worker's handle to a route.
pub type RouteHandle = Arc<Handle<Route>>;

/// Something shared behind a reference count that only one worker changes.
#[derive(Debug)]
pub struct Handle<T>(Arc<T>);

impl<T> Deref for Handle<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// One worker's view of the configuration that serves.
#[derive(Debug)]
pub struct View {
    snapshot: Arc<Snapshot>,
    /// All routes, as the router numbers them.
    pub routes: Box<[RouteHandle]>,
}

impl View {
    /// A view for one worker.
    pub fn new(snapshot: &Arc<Snapshot>) -> Arc<Self> {
        let routes = snapshot.routes.iter().map(|route| Arc::new(Handle(Arc::clone(route)))).collect();
        Arc::new(Self { snapshot: Arc::clone(snapshot), routes })
    }
}

impl Deref for View {
    type Target = Snapshot;
    fn deref(&self) -> &Snapshot {
        &self.snapshot
    }
}
