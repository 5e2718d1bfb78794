import PocketCore
import SwiftUI

/// Verify and time the model here, and give the results away.
struct DeviceView: View {
    let model: AppModel
    let loaded: LoadedBundle
    let activity: Activity

    var body: some View {
        List {
            if let problem = activity.problem { ProblemRow(problem) }
            Section {
                if case .measuring(let title, let share) = activity {
                    ProgressView(value: share) { Text(title) }
                    Button("Stop") { model.stop() }
                } else {
                    Button("Verify on this iPhone", systemImage: "checkmark.circle") { model.verify() }
                        .accessibilityIdentifier("verify")
                    Button("Benchmark", systemImage: "speedometer") { model.benchmark() }
                        .accessibilityIdentifier("benchmark")
                    Button("Benchmark for 5 minutes", systemImage: "thermometer.sun") { model.benchmarkSustained() }
                }
            } footer: {
                Text(
                    "Verify replays golden.json by token ids and compares the logits. Benchmark takes a minute or two.")
            }
            .disabled(activity == .answering)
            loadSection
            if let found = model.report.verify?[loaded.target.rawValue] { VerificationSection(found: found) }
            if let plans = model.report.computePlans, !plans.isEmpty {
                Section("Where Core ML plans to run it") {
                    ForEach(plans, id: \.function) { Text($0.summary).font(.footnote) }
                }
            }
            if let bench = model.report.bench, let found = bench.targets[loaded.target.rawValue] {
                BenchmarkSection(bench: bench, found: found)
            }
            if let data = try? model.report.json(), let text = String(data: data, encoding: .utf8) {
                ShareLink("Share the results as JSON", item: text)
            }
        }
    }

    private var loadSection: some View {
        Section("Loading") {
            if let seconds = loaded.load.compileSeconds { LabeledContent("Compiling, once", value: seconds.inSeconds) }
            LabeledContent("First load", value: loaded.load.firstSeconds.inSeconds)
        }
    }
}

private struct VerificationSection: View {
    let found: Verification

    var body: some View {
        Section("Verification") {
            Label(
                found.summary,
                systemImage: found.passed ? "checkmark.seal.fill" : "xmark.seal.fill"
            )
            .accessibilityIdentifier("verification")
            LabeledContent("Same top token", value: percent(found.top1))
            LabeledContent("Time", value: found.seconds.inSeconds)
        }
    }
}

private struct BenchmarkSection: View {
    let bench: Report.Benchmark
    let found: BenchmarkReport

    var body: some View {
        Section("Benchmark: \(bench.promptTokens) prompt tokens, \(bench.newTokens) new ones") {
            LabeledContent("Prefill", value: found.prefillTokensPerSecond.perSecond)
            LabeledContent("Decode", value: found.decodeTokensPerSecond.perSecond)
            LabeledContent("First token after", value: found.timeToFirstTokenSeconds.inSeconds)
            LabeledContent("Peak memory", value: megabytes(found.peakMemoryBytes))
            LabeledContent("Later load", value: found.laterLoadSeconds.inSeconds)
            LabeledContent("Thermal state", value: "\(found.before.thermalStatus) to \(found.after.thermalStatus)")
            if let last = found.sustained.last {
                LabeledContent("Decode after \(last.atSeconds.inSeconds)", value: last.decodeTokensPerSecond.perSecond)
            }
        }
    }
}

extension Double {
    fileprivate var inSeconds: String {
        "\(formatted(.number.precision(.significantDigits(1...3)))) s"
    }

    fileprivate var perSecond: String {
        "\(formatted(.number.precision(.fractionLength(1)))) tokens/s"
    }
}
