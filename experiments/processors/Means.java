import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.*;
import org.apache.kafka.streams.processor.TimestampExtractor;

/** 2 s event-time means per vehicle, and the means above their vehicle's speed limit. Argument: the job, in JSON. */
public final class Means {
    private static final ObjectMapper JSON = new ObjectMapper();

    /** count, then sum and number of latitudes and longitudes (1e-9 degrees) and of speeds (1e-6 m/s). */
    private static byte[] add(byte[] sums, JsonNode row) {
        ByteBuffer into = ByteBuffer.wrap(sums.clone());
        into.putLong(0, into.getLong(0) + 1);
        String[] names = {"latitude", "longitude", "speed_mps"};
        double[] scales = {1e9, 1e9, 1e6};
        for (int place = 0; place < names.length; place++) {
            JsonNode value = row.get(names[place]);
            if (value == null || value.isNull()) continue;
            int at = 8 + 16 * place;
            into.putLong(at, into.getLong(at) + Math.round(value.doubleValue() * scales[place]));
            into.putLong(at + 8, into.getLong(at + 8) + 1);
        }
        return into.array();
    }

    private static ObjectNode mean(Windowed<String> window, byte[] sums) {
        ByteBuffer from = ByteBuffer.wrap(sums);
        ObjectNode row = JSON.createObjectNode();
        row.put("vehicle", window.key());
        row.put("window_start", window.window().start() * 1000);
        row.put("count", from.getLong(0));
        String[] names = {"latitude", "longitude", "speed_mps"};
        long[] scales = {1_000_000_000L, 1_000_000_000L, 1_000_000L};
        for (int place = 0; place < names.length; place++) {
            long sum = from.getLong(8 + 16 * place), known = from.getLong(16 + 16 * place);
            if (known > 0) row.put(names[place], (double) sum / (double) (known * scales[place]));
        }
        return row;
    }

    private static JsonNode joined(JsonNode mean, JsonNode vehicle) {
        if (vehicle == null) return mean;
        ObjectNode row = mean.deepCopy();
        for (String name : new String[] {"model", "depot", "speed_limit_mps"}) row.set(name, vehicle.get(name));
        return row;
    }

    private static byte[] write(JsonNode row) {
        try {
            return row == null ? null : JSON.writeValueAsBytes(row);
        } catch (java.io.IOException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }

    private static JsonNode read(byte[] bytes) {
        try {
            return bytes == null ? null : JSON.readTree(bytes);
        } catch (java.io.IOException error) {
            throw new java.io.UncheckedIOException(error);
        }
    }

    public static void main(String[] arguments) throws Exception {
        JsonNode job = JSON.readTree(arguments[0]);
        Properties settings = new Properties();
        job.get("settings").properties().forEach(each -> settings.put(each.getKey(), each.getValue().asText()));
        Serde<String> key = Serdes.String();
        Serde<JsonNode> row = Serdes.serdeFrom((topic, value) -> write(value), (topic, bytes) -> read(bytes));
        TimestampExtractor eventTime =
            (record, before) -> ((JsonNode) record.value()).get("event_time").longValue() / 1000;
        TimeWindows windows =
            TimeWindows.ofSizeAndGrace(Duration.ofMillis(2000), Duration.ofMillis(job.get("grace_ms").longValue()));
        StreamsBuilder builder = new StreamsBuilder();
        GlobalKTable<String, JsonNode> vehicles =
            builder.globalTable(job.get("vehicles").asText(), Consumed.with(key, row));
        KStream<String, JsonNode> means =
            builder.stream(job.get("positions").asText(), Consumed.with(key, row).withTimestampExtractor(eventTime))
                .groupByKey(Grouped.with(key, row))
                .windowedBy(windows)
                .aggregate(() -> new byte[56], (vehicle, value, sums) -> add(sums, value),
                    Materialized.with(key, Serdes.ByteArray()))
                .suppress(Suppressed.untilWindowCloses(Suppressed.BufferConfig.unbounded()))
                .toStream()
                .map((window, sums) -> KeyValue.pair(window.key(), mean(window, sums)));
        means.to(job.get("means").asText(), Produced.with(key, row));
        means.leftJoin(vehicles, (vehicle, mean) -> vehicle, Means::joined)
            .filter((vehicle, mean) -> mean.has("speed_limit_mps") && mean.has("speed_mps")
                && mean.get("speed_mps").doubleValue() > mean.get("speed_limit_mps").doubleValue())
            .to(job.get("alerts").asText(), Produced.with(key, row));
        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
    }
}
