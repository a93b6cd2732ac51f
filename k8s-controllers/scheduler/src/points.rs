//! A plugin as a row of the scheduler's table: its name and the extension points that it has.

use std::{borrow::Cow, sync::Arc};

use crate::{
    Bind, EnqueueExtensions, Filter, NormalizeScore, Permit, PostBind, PostFilter, PreBind, PreEnqueue,
    PreFilter, PreScore, QueueSort, Reserve, Score, WakeOn,
    many::{AtOnce, Kept, PerNode},
};

/// A plugin's name, weight and extension points.
#[derive(Clone)]
pub struct Points {
    pub(crate) name: Cow<'static, str>,
    pub(crate) weight: i64,
    pub(crate) pre_enqueue: Option<Arc<dyn PreEnqueue>>,
    pub(crate) queue_sort: Option<Arc<dyn QueueSort>>,
    pub(crate) pre_filter: Option<Arc<dyn PreFilter>>,
    pub(crate) filter: Option<Arc<dyn Filter>>,
    pub(crate) post_filter: Option<Arc<dyn PostFilter>>,
    pub(crate) pre_score: Option<Arc<dyn PreScore>>,
    pub(crate) score: Option<Arc<dyn Score>>,
    pub(crate) normalize: Option<Arc<dyn NormalizeScore>>,
    pub(crate) reserve: Option<Arc<dyn Reserve>>,
    pub(crate) permit: Option<Arc<dyn Permit>>,
    pub(crate) pre_bind: Option<Arc<dyn PreBind>>,
    pub(crate) bind: Option<Arc<dyn Bind>>,
    pub(crate) post_bind: Option<Arc<dyn PostBind>>,
    pub(crate) enqueue: Option<Arc<dyn EnqueueExtensions>>,
    /// Results of the filter and the score are kept while the node does not change.
    pub(crate) per_node: Option<Arc<dyn PerNode>>,
    /// Filter and score of many nodes at once.
    pub(crate) at_once: Option<Arc<dyn AtOnce>>,
}

impl std::fmt::Debug for Points {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Points")
            .field("name", &self.name)
            .field("weight", &self.weight)
            .finish_non_exhaustive()
    }
}

impl Points {
    /// Starts a plugin without extension points, with the name of the type and weight 1.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicI64, Ordering};
    /// use k8s_scheduler::{Cluster, Cycle, Filter, NodeInfo, PodInfo, Points, Reject, Reserve, Scheduler};
    ///
    /// /// A licence of which the cluster has a number.
    /// struct Licences(AtomicI64);
    ///
    /// impl Filter for Licences {
    ///     fn filter(&self, _: &Cycle<'_>, _: &PodInfo, _: &NodeInfo) -> Result<(), Reject> {
    ///         let left = self.0.load(Ordering::Relaxed);
    ///         if left > 0 { Ok(()) } else { Err(Reject::full("no licence is free")) }
    ///     }
    /// }
    ///
    /// impl Reserve for Licences {
    ///     fn reserve(&self, _: &Cluster, _: &PodInfo, _: &NodeInfo) -> Result<(), Reject> {
    ///         self.0.fetch_sub(1, Ordering::Relaxed);
    ///         Ok(())
    ///     }
    ///     fn unreserve(&self, _: &PodInfo, _: &str) {
    ///         self.0.fetch_add(1, Ordering::Relaxed);
    ///     }
    /// }
    ///
    /// let licences = Points::of(Licences(AtomicI64::new(3))).filters().reserves();
    /// let scheduler = Scheduler::builder().plugin(licences);
    /// ```
    #[must_use]
    pub fn of<T: Send + Sync + 'static>(plugin: T) -> PointsOf<T> {
        let name = std::any::type_name::<T>().rsplit("::").next().unwrap_or_default();
        let points = Points {
            name: name.into(),
            weight: 1,
            pre_enqueue: None,
            queue_sort: None,
            pre_filter: None,
            filter: None,
            post_filter: None,
            pre_score: None,
            score: None,
            normalize: None,
            reserve: None,
            permit: None,
            pre_bind: None,
            bind: None,
            post_bind: None,
            enqueue: None,
            per_node: None,
            at_once: None,
        };
        PointsOf { plugin: Arc::new(plugin), points }
    }

    /// Returns the plugin's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the kinds of changes that may help a pod that the plugin refused. Default: any.
    pub(crate) fn wakes_on(&self) -> WakeOn {
        self.enqueue.as_ref().map_or(WakeOn::ANYTHING, |e| e.wakes_on())
    }
}

/// A plugin whose extension points are being listed. Each method requires the trait of its point.
pub struct PointsOf<T> {
    plugin: Arc<T>,
    points: Points,
}

impl<T> std::fmt::Debug for PointsOf<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.points.fmt(f)
    }
}

impl<T> Clone for PointsOf<T> {
    fn clone(&self) -> Self {
        PointsOf { plugin: self.plugin.clone(), points: self.points.clone() }
    }
}

macro_rules! point {
    ($(#[$doc:meta])* $method:ident, $field:ident, $bound:ident) => {
        $(#[$doc])*
        #[must_use]
        pub fn $method(mut self) -> Self
        where
            T: $bound,
        {
            self.points.$field = Some(self.plugin.clone());
            self
        }
    };
}

impl<T> PointsOf<T> {
    /// Sets the name.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.points.name = name.into();
        self
    }

    /// Adds [`Score`] with this weight, without [`NormalizeScore`].
    #[must_use]
    pub fn scores(mut self, weight: i64) -> Self
    where
        T: Score,
    {
        self.points.score = Some(self.plugin.clone());
        self.points.weight = weight;
        self
    }

    /// Declares that what [`Filter`] and [`Score`] return for a node depends on this node and the pods on it,
    /// and on the pod's namespace, labels, annotations, owners and spec alone: not on other nodes, the time
    /// or state of the plugin. The results are then kept for the pods of one template until the node
    /// changes. A score with [`PreScore`] is not kept. The filter is asked before those that are not kept.
    ///
    /// ```
    /// use k8s_scheduler::{Cycle, Filter, NodeInfo, PodInfo, Points, Reject, Scheduler};
    ///
    /// /// Keeps pods off nodes of other tenants.
    /// struct OwnNodes;
    ///
    /// impl Filter for OwnNodes {
    ///     fn filter(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> Result<(), Reject> {
    ///         match node.label("tenant").is_none_or(|tenant| tenant == pod.key.namespace) {
    ///             true => Ok(()),
    ///             false => Err(Reject::never("node(s) were of other tenants")),
    ///         }
    ///     }
    /// }
    ///
    /// let scheduler = Scheduler::builder().plugin(Points::of(OwnNodes).filters().depends_on_node());
    /// ```
    #[must_use]
    pub fn depends_on_node(mut self) -> Self {
        self.points.per_node = Some(Arc::new(Kept));
        self
    }

    /// Keeps results by what [`PerNode`] says.
    pub(crate) fn per_node(mut self) -> Self
    where
        T: PerNode + 'static,
    {
        self.points.per_node = Some(self.plugin.clone());
        self
    }

    /// Asks about many nodes at once.
    pub(crate) fn at_once(mut self) -> Self
    where
        T: AtOnce + 'static,
    {
        self.points.at_once = Some(self.plugin.clone());
        self
    }

    point!(/// Adds [`PreEnqueue`].
        pre_enqueues, pre_enqueue, PreEnqueue);
    point!(/// Adds [`QueueSort`].
        sorts_queue, queue_sort, QueueSort);
    point!(/// Adds [`PreFilter`].
        pre_filters, pre_filter, PreFilter);
    point!(/// Adds [`Filter`].
        filters, filter, Filter);
    point!(/// Adds [`PostFilter`].
        post_filters, post_filter, PostFilter);
    point!(/// Adds [`PreScore`].
        pre_scores, pre_score, PreScore);
    point!(/// Adds [`NormalizeScore`].
        normalizes, normalize, NormalizeScore);
    point!(/// Adds [`Reserve`].
        reserves, reserve, Reserve);
    point!(/// Adds [`Permit`].
        permits, permit, Permit);
    point!(/// Adds [`PreBind`].
        pre_binds, pre_bind, PreBind);
    point!(/// Adds [`Bind`].
        binds, bind, Bind);
    point!(/// Adds [`PostBind`].
        post_binds, post_bind, PostBind);
    point!(/// Adds [`EnqueueExtensions`].
        wakes, enqueue, EnqueueExtensions);
}

/// A row for the scheduler's table.
pub trait Plugin {
    /// Returns the row.
    fn points(self) -> Points;
}

impl Plugin for Points {
    fn points(self) -> Points {
        self
    }
}

impl<T> Plugin for PointsOf<T> {
    fn points(self) -> Points {
        self.points
    }
}

/// Adds [`ScoreExt::weight`] to every score.
///
/// ```
/// use k8s_core::client::Client;
/// use k8s_scheduler::{Cycle, NodeInfo, PodInfo, Scheduler, Score, ScoreExt};
///
/// struct SameRackAsData;
///
/// impl Score for SameRackAsData {
///     fn score(&self, _: &Cycle<'_>, pod: &PodInfo, node: &NodeInfo) -> i64 {
///         if node.label("rack") == pod.annotation("data-rack") { 100 } else { 0 }
///     }
/// }
///
/// async fn run(client: Client) {
///     Scheduler::builder().plugin(SameRackAsData.weight(5)).run(client).await;
/// }
/// ```
pub trait ScoreExt: Score + Sized {
    /// Makes a plugin that only scores, with this weight.
    fn weight(self, weight: i64) -> PointsOf<Self> {
        Points::of(self).scores(weight)
    }
}

impl<S: Score> ScoreExt for S {}
