-- The rows taken apart, with the time since they were written passed, as in penstock/_core/rows.py.

local born = remembers == 1 and now or -1  -- the moment before which what is not there counts as forgotten

local kind, first, second, third = {}, {}, {}, {}       -- the limits, counted through all names from 1
local pause, last, used, what, entries, epochs = {}, {}, {}, {}, {}, {}
local begins, born_at, others, flows, row_of = {}, {}, {}, {}, {}  -- flows: per name its entries
local booked = {}  -- per name its bookings
local limits = 0

for name = 1, names do
  local row = redis.pcall('HMGET', KEYS[name + 1], 't', 'r')
  if row.err then return is_of_another_type(row) and redis.error_reply('DAMAGED ' .. name) or row end
  local terms, bytes = row[1], row[2]
  if terms or bytes then
    bytes = terms and bytes and opened(bytes, KEYS[name + 1] .. terms)
    if not bytes then return redis.error_reply('DAMAGED ' .. name) end
  end
  if terms and terms ~= ARGV[name + 1] then
    others[#others + 1] = name
    others[#others + 1] = terms
  end
  local count = asked[position]
  position = position + 1
  begins[name] = limits
  local numbers = bytes and #others == 0 and read(bytes)
  local at, passed = 3, 0
  if numbers then
    born_at[name] = numbers[2]
    passed = max(0, now - numbers[1]) / 1e6
  else
    born_at[name] = now
  end
  for limit = limits + 1, limits + count do
    local k, a, b, c = asked[position], asked[position + 1], asked[position + 2], asked[position + 3]
    position = position + 5
    kind[limit], first[limit], second[limit], third[limit] = k, a, b, c
    epochs[limit], row_of[limit] = born_at[name], name
    local p, l, u, w, log = 0, 0, 0, 0, {}
    if numbers then
      p, l, u, w = numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]
      local size = numbers[at + 4]
      at = at + 5
      for i = 1, size do
        log[i] = {numbers[at], numbers[at + 1], numbers[at + 2]}
        at = at + 3
      end
      if k == BUCKET then
        u = max(0, u - passed * a)
        if u == 0 then log = {} end
      elseif k == CALENDAR then
        local current, later = now < b and b or c, log[1]
        if now < c and w ~= current and (w > current or now >= w) then
          local came = later and later[1] == current and later[3] or 0
          if later and later[1] <= current then log = {} end
          if w < current then
            u = came
          elseif u ~= 0 then
            log = {{w, 0, u}}
          end
          w = current
        end
      else
        local latest, all = now + ceil(b * 1e6) + l * 1e6, log  -- the clock may have stepped back
        log = {}
        for i = 1, #all do
          local entry = all[i]
          if entry[1] > now then
            entry[1] = min(entry[1], latest)
            log[#log + 1] = entry
          end
        end
      end
      p = max(0, p - passed)
      if k ~= CALENDAR then l = max(0, l - passed) end
    else
      local lost, age = born >= 0, (now - born) / 1e6
      if k == BUCKET then
        if lost then u = max(0, b - age * a) end
      elseif k == CALENDAR then
        if now < c then w = now < b and b or c end
        if lost and born < w and now - born < w - now then u = a end
      elseif lost and age < b then
        log[1] = {born + ceil(b * 1e6), 0, a}
      end
    end
    pause[limit], last[limit], used[limit], what[limit], entries[limit] = p, l, u, w, log
  end
  local known, bookings = {}, {}
  if numbers then
    local width, bound = AMOUNTS + count, numbers[at]
    at = at + 1
    for i = 1, bound do
      local booking = {unpack(numbers, at, at + width - 1)}
      booking[DUE], booking[WAITED] = booking[DUE] - passed, booking[WAITED] + passed
      if booking[DUE] >= -EXPIRED then bookings[#bookings + 1] = booking end
      at = at + width
    end
    while at < #numbers do
      known[#known + 1] = {numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3] - passed}
      at = at + 4
    end
  end
  flows[name], booked[name] = known, bookings
  limits = limits + count
end
begins[names + 1] = limits
if #others > 0 then return {struct.pack('>d', now), unpack(others)} end
