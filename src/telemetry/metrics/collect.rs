//! From counters to the `prometheus` crate's families, which its text encoder writes.

use prometheus::proto;

use super::shard::{BUCKETS, DurationSums};
use super::table::{Family, Kind};

/// The families of one scrape, in the making.
pub struct Scrape(Vec<proto::MetricFamily>);

impl Default for Scrape {
    fn default() -> Self {
        Self(Family::ALL.iter().map(|family| empty(*family)).collect())
    }
}

impl Scrape {
    /// Adds a series of a counter or gauge. `labels` are the values, in the order of [`Family::labels`].
    pub fn number(&mut self, family: Family, labels: &[&str], value: f64) {
        let mut metric = proto::Metric::default();
        match family.kind() {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            Kind::Gauge | Kind::Histogram => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        self.push(family, labels, metric);
    }

    /// Adds a series of a counter.
    pub fn count(&mut self, family: Family, labels: &[&str], value: u64) {
        self.number(family, labels, value as f64);
    }

    /// Adds a series of a histogram.
    pub fn durations(&mut self, family: Family, labels: &[&str], sums: &DurationSums) {
        let mut seen = 0;
        let buckets = BUCKETS.iter().zip(&sums.buckets).map(|(bound, count)| {
            seen += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(seen);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(sums.buckets.iter().sum());
        histogram.set_sample_sum(sums.nanoseconds as f64 / 1e9);
        let mut metric = proto::Metric::default();
        metric.set_histogram(histogram);
        self.push(family, labels, metric);
    }

    /// All families that have a series.
    pub fn finish(self) -> Vec<proto::MetricFamily> {
        self.0.into_iter().filter(|family| !family.get_metric().is_empty()).collect()
    }

    fn push(&mut self, family: Family, labels: &[&str], mut metric: proto::Metric) {
        debug_assert_eq!(labels.len(), family.labels().len(), "{}", family.name());
        let pairs = family.labels().iter().zip(labels).map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        metric.set_label(pairs.collect());
        if let Some(family) = self.0.get_mut(family as usize) {
            family.mut_metric().push(metric);
        }
    }
}

fn empty(family: Family) -> proto::MetricFamily {
    let mut made = proto::MetricFamily::default();
    made.set_name(family.name().to_owned());
    made.set_help(family.help().to_owned());
    made.set_field_type(match family.kind() {
        Kind::Counter => proto::MetricType::COUNTER,
        Kind::Gauge => proto::MetricType::GAUGE,
        Kind::Histogram => proto::MetricType::HISTOGRAM,
    });
    made
}
